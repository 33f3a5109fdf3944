"""Convolutions that start as an isometry: as (a part of) the identity, or as a random one.

Delta: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020. Random orthogonal kernels: Xiao
et al., "Dynamical Isometry and a Mean Field Theory of CNNs", ICML 2018, https://arxiv.org/abs/1806.05393, on
the centre tap (section 3, "delta-orthogonal") and over all taps (appendix, algorithm 1; Kautsky, Turcajova,
1994). What differs: the strided and transposed forms, which neither paper has.
"""

import itertools

import torch
from torch import nn

from ._conv import check_weight, per_axis, split_groups


@torch.no_grad()
def delta_init_(weight, stride=1, groups=1, transposed=False):
    """Set a convolution weight to the Kronecker delta, in place: output i copies input i at the centre tap.

    The centre tap is k // 2 on each axis, so a convolution with padding k // 2 is the identity where M = C.
    For a transposed convolution it is (k - 1) // 2, the same tap for odd k. For even k it puts, at stride 2
    with padding (k - 2) / 2, input pixel n on output pixel 2n, where a strided delta convolution reads it.

    A strided convolution with more outputs than inputs also copies the other pixels of each stride x stride
    block: output i copies input i mod C at phase i div C, as long as the kernel has taps for further phases.
    Phase 0 is the centre tap. This is an isometry of the pixels that are read; the plain delta (``stride=1``)
    is none where M > C and k > 1. The paper's networks start from the plain delta. For such layers the
    penalty is 0 at the strided delta with ``mode="exact"``, and at the plain one with ``mode="paper"``.

    Args:
        weight (Tensor): (M, C / groups, *k), of a convolution of 1 to 3 dimensions; k odd or even.
        stride (int or tuple): 1 for the plain delta.
        groups (int): each group gets a delta of its own.
        transposed (bool): the weight is that of a transposed convolution, (C_in, C_out / groups, *k). It
            becomes the adjoint of a strided convolution from C_out to C_in channels.

    Returns:
        Tensor: `weight`.

    Raises:
        ValueError: wrong rank, groups that do not divide the channels, stride of the wrong length.

    Source: report, section 3, "Delta kernel".
    """
    kernels, phases = _kernels_and_phases(weight, stride, groups, transposed)
    in_channels = kernels.shape[2]
    weight.zero_()
    for phase, tap in enumerate(phases):
        outputs = range(phase * in_channels, min((phase + 1) * in_channels, kernels.shape[1]))
        for i in outputs:
            kernels[(slice(None), i, i % in_channels, *tap)] = 1
    return weight


@torch.no_grad()
def orthogonal_init_(weight, stride=1, groups=1, transposed=False, all_taps=False, generator=None):
    """Set a convolution weight to a random isometry, or to the adjoint of one, in place.

    A random semi-orthogonal matrix replaces the ones of the delta. At stride 1 it is (M, C) on the centre
    tap. With `all_taps` the kernel covers all taps: the first M rows and C columns of

        Q * (P_1 + (I - P_1) z_1) * (P_2 + (I - P_2) z_2) * ...,    z_i a shift by one tap along an axis,

    with n = max(M, C), Q a random n x n orthogonal matrix, P_i random projections of rank n / 2, kh - 1
    factors for one axis and kw - 1 for the other. Each factor is an orthogonal convolution of two taps.

    A strided convolution reads all pixels of its stride x stride block for which its kernel has taps: the
    matrix is (M, E) with E = C * min(kh, sh) * min(kw, sw), a column for each channel and phase. A transposed
    convolution spreads each input pixel over such a block, (C_in, E). The penalty with ``mode="exact"`` is 0.
    Unlike with the delta, no channel is lost or empty where the width changes.

    Args:
        weight, stride, groups, transposed: as in :func:`delta_init_`, but here with the convolution's own
            stride.
        all_taps (bool): use all taps of two-dimensional convolutions of stride 1; others are not affected.
        generator (torch.Generator or None): None: PyTorch's default.

    Returns:
        Tensor: `weight`.

    Raises:
        ValueError: as for :func:`delta_init_`.
    """
    kernels, phases = _kernels_and_phases(weight, stride, groups, transposed)
    rows, columns = kernels.shape[1:3]
    at_stride_1 = set(per_axis("stride", stride, weight.dim() - 2)) == {1}
    weight.zero_()
    for kernel in kernels:
        if all_taps and weight.dim() == 4 and at_stride_1:
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
    """Subtract from each output's part of a weight, or of its gradient, its mean, in place.

    The layer then maps constant images to 0. Its outputs for patches of mean 0 do not change.

    Args:
        weight (Tensor): (M, C / groups, *k).

    Returns:
        Tensor: `weight`.

    Source: Huang et al., ICCV 2017, "Centered Weight Normalization", section 3.2, for the weight; Yong et
    al., 2020, https://arxiv.org/abs/2004.01461, eq. (1), for the gradient.
    """
    return weight.sub_(weight.mean(dim=tuple(range(1, weight.dim())), keepdim=True))


def _orthogonal_kernel(like, generator):
    """(M, C, kh, kw), rows or columns of a random orthogonal convolution, see `orthogonal_init_`."""
    rows, columns, *kernel_size = like.shape
    size = max(rows, columns)
    options = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": "cpu"}

    def orthogonal():
        return nn.init.orthogonal_(torch.empty(size, size, **options), generator=generator)

    # (kh, kw, n, n); each step adds a factor on the right
    kernel = orthogonal()[None, None]
    axes = [0] * (kernel_size[0] - 1) + [1] * (kernel_size[1] - 1)
    for i, axis in enumerate(axes):
        # for odd n, the larger and the smaller half take turns
        half = orthogonal()[:, : (size + 1 - i % 2) // 2]
        kept = kernel @ half @ half.T
        space = torch.zeros_like(kernel.narrow(axis, 0, 1))
        kernel = torch.cat([kept, space], axis) + torch.cat([space, kernel - kept], axis)
    return kernel[:, :, :rows, :columns].permute(2, 3, 0, 1).to(like)


def _kernels_and_phases(weight, stride, groups, transposed):
    """A view of the weight as (g, M / g, C / g, *k), and one tap of each phase of the stride."""
    check_weight(weight, ranks=(3, 4, 5))
    kernel_size = weight.shape[2:]
    stride = per_axis("stride", stride, len(kernel_size))
    taps = [_axis_taps(k, s, transposed) for k, s in zip(kernel_size, stride, strict=True)]
    return split_groups(weight[None], groups, transposed), list(itertools.product(*taps))


def _axis_taps(kernel_size, stride, transposed):
    """One tap of each phase along an axis: min(k, s) neighbouring taps, of which the centre comes first."""
    centre = (kernel_size - 1) // 2 if transposed else kernel_size // 2
    count = min(kernel_size, stride)
    first = min(centre, kernel_size - count)
    return [first + (centre - first + phase) % count for phase in range(count)]
