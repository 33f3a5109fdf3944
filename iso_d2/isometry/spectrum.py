"""The singular values of a convolution as a linear operator on a circular grid.

After Sedghi, Gupta, Long, "The Singular Values of Convolutional Layers", ICLR 2019,
https://arxiv.org/abs/1805.10408. What differs: stride (by polyphase components), groups and kernels larger
than the grid.
"""

import math

import torch

from ._conv import check_weight, cut_to_tiles, per_axis, polyphase, stack_kernels


@torch.no_grad()
def conv_singular_values(weight, input_size, stride=1, groups=1):
    """All singular values of the strided circular convolution.

    They are the min(rows, columns) singular values of the dense (M * H/s * W/s, C * H * W) matrix. Padding
    only shifts a circular grid, so it changes none. Kernels larger than the grid wrap around.

    Args:
        weight (Tensor): (M, C / groups, kh, kw); computed in float64 if it is float64, else in float32.
        input_size (int or (int, int)): H, W in pixels, divisible by the stride.
        stride (int or (int, int)): of the convolution.
        groups (int): of the convolution.

    Returns:
        Tensor: (min(M * H/s * W/s, C * H * W),), descending, without gradient.

    Raises:
        ValueError: wrong rank, an input size that the stride does not divide, groups that do not divide M.
    """
    check_weight(weight)
    size, stride = per_axis("input_size", input_size, 2), per_axis("stride", stride, 2)
    if any(n % s for n, s in zip(size, stride, strict=True)):
        raise ValueError(f"input_size must be divisible by the stride {stride}, got {size}")
    on_grid = cut_to_tiles(stack_kernels([weight], groups), size).sum((3, 5))  # (g, M / g, C / g, H, W)
    phases = polyphase(on_grid, stride)  # (g, M / g, C / g * sh * sw, H / sh, W / sw)
    matrices = torch.fft.rfft2(phases).permute(0, 3, 4, 1, 2)
    values = torch.linalg.svdvals(matrices)
    # rfft2 leaves out the columns that are complex conjugates of the columns 1, 2, ...
    mirrored = values[:, :, 1 : (phases.shape[-1] + 1) // 2]
    return torch.cat([values.flatten(), mirrored.flatten()]).sort(descending=True).values


def isometric_side(weight, input_size, stride=1, groups=1):
    """The singular values of the side that can be an isometry.

    For each output position the min(M, E) largest, of its M outputs and the E = C min(kh, sh) min(kw, sw)
    inputs that are its own. Pixels that a stride larger than the kernel skips (three of four at 1x1, stride
    2) have a singular value 0 for any weight, and are left out.

    Args, Raises: as for `conv_singular_values`.

    Returns:
        Tensor: (min(M, E) * H/s * W/s,), descending, without gradient.
    """
    values = conv_singular_values(weight, input_size, stride, groups)
    size, stride = per_axis("input_size", input_size, 2), per_axis("stride", stride, 2)
    in_channels = weight.shape[1] * groups
    pixels_read = in_channels * math.prod(min(k, s) for k, s in zip(weight.shape[2:], stride, strict=True))
    positions = math.prod(n // s for n, s in zip(size, stride, strict=True))
    return values[: min(weight.shape[0], pixels_read) * positions]


def isometry_error(weight, input_size, stride=1, groups=1):
    """How far the convolution is from an isometry: max |sigma - 1| over the side that can be one.

    Pixels that a stride larger than the kernel skips do not count, see `isometric_side`.

    Args, Raises: as for `conv_singular_values`.

    Returns:
        Tensor: 0-dim; 0 where the operator, or its adjoint, preserves every norm.
    """
    return (isometric_side(weight, input_size, stride, groups) - 1).abs().max()
