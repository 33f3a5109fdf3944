"""Delta initialisation: a convolution that starts as (a part of) the identity.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020. What differs: the
strided form, which the paper does not have.
"""

import itertools

import torch

from ._conv import check_weight, per_axis, split_groups


@torch.no_grad()
def delta_init_(weight, stride=1, groups=1, transposed=False):
    """Set a convolution weight to the Kronecker delta, in place: output i copies input i at the centre tap.

    The centre tap is k // 2 on each axis, so that a convolution with padding k // 2 is the identity where
    M = C. For a transposed convolution it is (k - 1) // 2: the same one for odd k, and for even k the one
    that, at stride 2 with padding (k - 2) / 2, puts input pixel n on output pixel 2n, where a strided delta
    convolution read it.

    A strided convolution that has more outputs than inputs copies the other pixels of each stride x stride
    block too: output i copies input i mod C at phase i div C, phase 0 being the centre tap, as long as the
    kernel has taps for further phases. That makes it an isometry (of the pixels that it reads), which the
    plain delta (``stride=1``) is not where M > C and k > 1. The paper's networks start from the plain delta.
    There the penalty's ``mode="exact"`` is zero at the strided delta and ``mode="paper"`` at the plain one.

    Args:
        weight (Tensor): (M, C / groups, *k), of a convolution of 1 to 3 dimensions; k odd or even.
        stride (int or tuple): 1 for the plain delta.
        groups (int): each group gets a delta of its own.
        transposed (bool): whether the weight is of a transposed convolution, (C_in, C_out / groups, *k); it
            becomes the adjoint of a strided convolution from C_out to C_in channels.

    Returns:
        Tensor: `weight`.

    Raises:
        ValueError: wrong rank, groups that do not divide the channels, stride of the wrong length.

    Source: report, section 3, "Delta kernel".
    """
    check_weight(weight, ranks=(3, 4, 5))
    kernel_size = weight.shape[2:]
    stride = per_axis("stride", stride, len(kernel_size))
    kernels = split_groups(weight[None], groups, transposed)
    in_channels = kernels.shape[2]
    taps = [_axis_taps(k, s, transposed) for k, s in zip(kernel_size, stride, strict=True)]
    weight.zero_()
    for phase, tap in enumerate(itertools.product(*taps)):
        outputs = range(phase * in_channels, min((phase + 1) * in_channels, kernels.shape[1]))
        for i in outputs:
            kernels[(slice(None), i, i % in_channels, *tap)] = 1
    return weight


def _axis_taps(kernel_size, stride, transposed):
    """One tap of each phase along an axis: min(k, s) neighbours among which is the centre, that one first."""
    centre = (kernel_size - 1) // 2 if transposed else kernel_size // 2
    count = min(kernel_size, stride)
    first = min(centre, kernel_size - count)
    return [first + (centre - first + phase) % count for phase in range(count)]
