"""Convolutions that start as an isometry: as (a part of) the identity, or as a random one.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020, for the delta; Xiao et al.,
"Dynamical Isometry and a Mean Field Theory of CNNs", ICML 2018, https://arxiv.org/abs/1806.05393, for random
orthogonal kernels: on the centre tap (section 3, "delta-orthogonal") and over all taps (appendix, algorithm
1; Kautsky, Turcajova, 1994). What differs: the strided and transposed forms, which neither has.
"""

import itertools

import torch
from torch import nn

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


@torch.no_grad()
def orthogonal_init_(weight, stride=1, groups=1, transposed=False, all_taps=False, generator=None):
    """Set a convolution weight to a random isometry, or to the adjoint of one, in place.

    A random semi-orthogonal matrix takes the place of the delta's ones. At stride 1 it lies on the centre
    tap, (M, C), or with `all_taps` becomes a kernel over all of them: with n = max(M, C), Q a random
    orthogonal matrix and P_i random projections of half the rank, each an orthogonal convolution of two
    taps,

        Q * (P_1 + (I - P_1) z_1) * (P_2 + (I - P_2) z_2) * ...,    z_i a shift by one tap along an axis,

    with kh - 1 factors of one axis and kw - 1 of the other, of which the first M rows and C columns. A
    strided convolution reads all pixels of its stride x stride block, as far as its kernel has taps: the
    matrix is (M, E) with E = C * min(kh, sh) * min(kw, sw), one column for each channel and phase. A
    transposed convolution spreads an input pixel over such a block, (C_in, E). The penalty's
    ``mode="exact"`` is 0 there. Unlike with the delta, no channel is lost or empty where the width changes.

    Args:
        weight, stride, groups, transposed: as of :func:`delta_init_`; here the stride should be the
            convolution's own.
        all_taps (bool): use all taps of a convolution of stride 1, of two dimensions; others are as without.
        generator (torch.Generator or None): None: PyTorch's own.

    Returns:
        Tensor: `weight`.

    Raises:
        ValueError: as of :func:`delta_init_`.
    """
    check_weight(weight, ranks=(3, 4, 5))
    kernel_size = weight.shape[2:]
    stride = per_axis("stride", stride, len(kernel_size))
    kernels = split_groups(weight[None], groups, transposed)  # (g, M / g, C / g, *k)
    taps = [_axis_taps(k, s, transposed) for k, s in zip(kernel_size, stride, strict=True)]
    phases = list(itertools.product(*taps))
    rows, columns = kernels.shape[1:3]
    weight.zero_()
    for kernel in kernels:
        if all_taps and len(kernel_size) == 2 and set(stride) == {1}:
            kernel.copy_(_orthogonal_kernel(kernel, generator))
            continue
        dtype = torch.promote_types(weight.dtype, torch.float32)
        matrix = weight.new_empty(rows, len(phases), columns, dtype=dtype)
        nn.init.orthogonal_(matrix.view(rows, -1), generator=generator)
        for phase, tap in enumerate(phases):
            kernel[(slice(None), slice(None), *tap)] = matrix[:, phase]
    return weight


@torch.no_grad()
def centre_(weight):
    """Take from each output's part of a weight, or of its gradient, its mean, in place.

    On images of which every patch has the mean 0 the layer stays what it was; a constant image gives 0.

    Args:
        weight (Tensor): (M, C / groups, *k).

    Returns:
        Tensor: `weight`.

    Source: Huang et al., ICCV 2017, "Centered Weight Normalization", section 3.2, for the weight; Yong et
    al., 2020, https://arxiv.org/abs/2004.01461, eq. (1), for the gradient.
    """
    return weight.sub_(weight.mean(dim=tuple(range(1, weight.dim())), keepdim=True))


def _orthogonal_kernel(like, generator):
    """(M, C, kh, kw), all rows or all columns of a random orthogonal convolution, see `orthogonal_init_`."""
    rows, columns, *kernel_size = like.shape
    size = max(rows, columns)
    options = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": "cpu"}

    def orthogonal():
        return nn.init.orthogonal_(torch.empty(size, size, **options), generator=generator)

    # (kh, kw, n, n), from the left a growing part of the kernel
    kernel = orthogonal()[None, None]
    axes = [0] * (kernel_size[0] - 1) + [1] * (kernel_size[1] - 1)
    for i, axis in enumerate(axes):
        # of odd sizes the larger half and the smaller in turn
        half = orthogonal()[:, : (size + 1 - i % 2) // 2]
        kept = kernel @ half @ half.T
        space = torch.zeros_like(kernel.narrow(axis, 0, 1))
        kernel = torch.cat([kept, space], axis) + torch.cat([space, kernel - kept], axis)
    return kernel[:, :, :rows, :columns].permute(2, 3, 0, 1).to(like)


def _axis_taps(kernel_size, stride, transposed):
    """One tap of each phase along an axis: min(k, s) neighbours among which is the centre, that one first."""
    centre = (kernel_size - 1) // 2 if transposed else kernel_size // 2
    count = min(kernel_size, stride)
    first = min(centre, kernel_size - count)
    return [first + (centre - first + phase) % count for phase in range(count)]
