"""The orthogonality penalty of convolutions, and the Gram of a kernel that it measures.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020,
https://arxiv.org/abs/2006.16992. What differs: the value and its gradient are computed together, in closed
form, at a fraction of the cost of differentiating a convolution of the kernel with itself; and
``mode="exact"`` measures strided convolutions, which the paper's formula does not.
"""

import functools
import math
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn

from ._conv import check_weight, per_axis, polyphase, split_groups

# Weights worked on at once. Small layers of one shape share their matrix products; with more than this the
# buffers, about six times as large, only cost memory.
_WEIGHTS_AT_ONCE = 2**20


def conv_gram(weight, stride=1):
    """Correlate every kernel of a convolution with every other one, eq. (4).

    G[m, m', d] = sum over c, t of W[m, c, t + d] W[m', c, t]; A* is an isometry where G is 1 at m = m', d = 0
    and zero elsewhere.

    Args:
        weight (Tensor): (M, C, kh, kw).
        stride (int or (int, int)): only shifts d that are multiples of it are taken.

    Returns:
        Tensor: (M, M, 2kh - 1, 2kw - 1) at stride 1, in general 2 ((k - 1) // s) + 1 shifts an axis, d = 0 in
        the middle; differentiable.

    Raises:
        ValueError: wrong rank, bad stride.

    Source: report, eq. (4).
    """
    check_weight(weight)
    stride = per_axis("stride", stride, 2)
    padding = [(k - 1) // s * s for k, s in zip(weight.shape[2:], stride, strict=True)]
    return F.conv2d(weight, weight, stride=stride, padding=padding)


def orthogonality_loss(weight, stride=1, groups=1, transposed=False, mode="paper"):
    """How far a convolution is from an isometry: L = 1/2 ||Gram - delta||_F^2, without the coefficient gamma.

    mode="paper": the Gram of eq. (4) at the shifts that are multiples of the stride, of the kernel with
    inputs and outputs exchanged where M > C. It is the formula of the paper's code where
    (k - 1) % stride == 0.

    mode="exact": with P the polyphase components of the kernel, as one stride-1 convolution of
    E = C min(kh, sh) min(kw, sw) channels, the Gram of P over its M outputs if M <= E, else over its E
    inputs. On a circular grid of n x n pixels, n divisible by s and n / s >= 2 ceil(k / s) - 1, that is
    1/2 ||A A^T - I||^2 (or A^T A, over the pixels that A reads at all) for one output position; zero padding
    at the border is not modelled. It vanishes at isometries only; mode="paper" agrees with it at stride 1.

    Dilation, coprime to the stride, only moves the shifts of the Gram apart: it changes neither.

    Args:
        weight (Tensor): (M, C / groups, kh, kw); float32 and float64 are worked with as they are, half
            precision in float32, under autocast too.
        stride (int or (int, int)): of the convolution.
        groups (int): the sum over the groups, each a convolution of its own.
        transposed (bool): whether the weight is of a transposed convolution, (C_in, C_out / groups, kh, kw).
            It has the penalty of the convolution of the same weight and stride, whose adjoint it is; so this
            only words the errors.
        mode (str): "paper" or "exact".

    Returns:
        Tensor: without dimensions, float32 or float64. Its gradient is computed with it and kept until
        backward, as large as the weight, if the weight requires one.

    Raises:
        ValueError: unknown mode, wrong rank, bad stride, groups that do not divide M.
        RuntimeError: in backward with ``create_graph=True``: there are no second derivatives.

    Source: report, eq. (5) and (6).
    """
    return _losses([weight], stride, groups, transposed, mode)[0]


def orthogonality_losses(convs, mode="paper"):
    """The penalty of many convolutions; those of one shape are computed together.

    Args:
        convs (iterable[nn.Conv2d | nn.ConvTranspose2d]): frozen ones get a value and cost no gradient.
        mode (str): "paper" or "exact".

    Returns:
        Tensor: (len(convs),), each value as `orthogonality_loss` gives it.

    Raises:
        TypeError: anything but those modules.
        ValueError: unknown mode.
    """
    _check_mode(mode)
    alike = defaultdict(list)
    for position, conv in enumerate(convs):
        if not isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
            raise TypeError(
                f"orthogonality_losses takes nn.Conv2d and nn.ConvTranspose2d, got {type(conv).__name__}"
            )
        weight, transposed = conv.weight, isinstance(conv, nn.ConvTranspose2d)
        kind = (weight.shape, weight.dtype, weight.device, weight.requires_grad)
        alike[kind, conv.stride, conv.groups, transposed].append((position, weight))
    losses = {}
    for (_, stride, groups, transposed), members in alike.items():
        positions, weights = zip(*members, strict=True)
        values = _losses(weights, stride, groups, transposed, mode)
        losses.update(zip(positions, values, strict=True))
    return torch.stack([losses[i] for i in range(len(losses))]) if losses else torch.zeros(0)


def _check_mode(mode):
    if mode not in ("paper", "exact"):
        raise ValueError(f"orthogonality mode must be 'paper' or 'exact', got {mode!r}")


def _losses(weights, stride, groups, transposed, mode):
    """Weights of one shape -> (len(weights),)."""
    _check_mode(mode)
    check_weight(weights[0])
    stride = per_axis("stride", stride, 2)
    count = max(1, _WEIGHTS_AT_ONCE // weights[0].numel())
    losses = []
    with torch.autocast(weights[0].device.type, enabled=False):
        for start in range(0, len(weights), count):
            kernels = split_groups(torch.stack(weights[start : start + count]), groups, transposed)
            kernels = kernels.to(torch.promote_types(kernels.dtype, torch.float32))
            operand, shift = _gram_operand(kernels, stride, mode)
            if operand.requires_grad:
                values = _Penalty.apply(operand, shift)
            else:
                values, _ = _penalty(operand, shift, with_grad=False)
            losses.append(values.view(-1, groups).sum(1))
    return torch.cat(losses)


def _gram_operand(kernels, stride, mode):
    """What to form the Gram of, and at the multiples of which shift.

    Args:
        kernels (Tensor): (B, M, C, kh, kw).

    Returns:
        tuple[Tensor, tuple[int, int]]: (B, rows, columns, kh', kw') and the shift.
    """
    _, out_channels, in_channels, *kernel_size = kernels.shape
    # a stride beyond the kernel size only skips more pixels that are not read
    stride = tuple(min(s, k) for s, k in zip(stride, kernel_size, strict=True))
    if mode == "paper":
        return (kernels.transpose(1, 2) if out_channels > in_channels else kernels), stride
    if out_channels > in_channels * math.prod(stride):
        return polyphase(kernels, stride).transpose(1, 2), (1, 1)
    # the Gram of P over its outputs is that of the kernel at the multiples of the stride
    return kernels, stride


class _Penalty(torch.autograd.Function):
    """(B, M, C, kh, kw), shift -> (B,)."""

    @staticmethod
    def forward(ctx, kernels, shift):
        values, grad = _penalty(kernels, shift, with_grad=True)
        ctx.save_for_backward(grad)
        return values

    @staticmethod
    def backward(ctx, upstream):
        # once_differentiable would take the stored gradient for a constant without a word
        if torch.is_grad_enabled():
            raise RuntimeError("the orthogonality loss has no second derivatives: use create_graph=False")
        (grad,) = ctx.saved_tensors
        return grad * upstream.view(-1, 1, 1, 1, 1), None


def _penalty(kernels, shift, with_grad):
    """1/2 ||G - delta||^2 of the Gram G at the multiples of `shift`, and its gradient or None."""
    if shift == (1, 1) and kernels.shape[3:] != (1, 1):
        return _penalty_by_frequency(kernels, with_grad)
    return _penalty_by_shift(kernels, shift, with_grad)


def _penalty_by_shift(kernels, shift, with_grad):
    """One matrix product a shift; G(-d) = G(d)^T, so half of the shifts do."""
    kernels = kernels.movedim(2, 4).contiguous()  # (B, M, kh, kw, C)
    flat = kernels.flatten(2)
    gram = flat @ flat.mT
    gram.diagonal(dim1=1, dim2=2).sub_(1)
    values = 0.5 * _sum_of_squares(gram)
    grad = (2 * gram @ flat).view_as(kernels) if with_grad else None
    kh, kw = kernels.shape[2:4]
    for dy, dx in _half_plane((kh, kw), shift)[1:]:
        here = (..., slice(0, kh - dy), slice(max(0, -dx), kw - max(0, dx)), slice(None))
        there = (..., slice(dy, kh), slice(max(0, dx), kw - max(0, -dx)), slice(None))
        left, right = kernels[here], kernels[there]
        gram = left.flatten(2) @ right.flatten(2).mT
        values += _sum_of_squares(gram)
        if with_grad:
            grad[here] += (2 * gram @ right.flatten(2)).view_as(left)
            grad[there] += (2 * gram.mT @ left.flatten(2)).view_as(right)
    return values, grad.movedim(4, 2) if with_grad else None


def _penalty_by_frequency(kernels, with_grad):
    """The penalty at all shifts, by Parseval's theorem, in real arithmetic.

    With A = sum_t W(t) cos(f.t) and B the same with sin, the Gram's transform at frequency f is R + iJ with
    R = A A^T + B B^T symmetric and J = A B^T - B A^T antisymmetric. Its norm is that of the one real matrix
        Z = R - J - I = H H^T - 2 A B^T - I,    H = A + B,
    and the gradient of 1/2 ||Z||^2 is
        (Z + Z^T) H - 2 Z B  in A,    (Z + Z^T) H - 2 Z^T A  in B:
    two real products a frequency for the value and three for the gradient, against four and four for complex
    arithmetic written out.
    On a grid of 2k - 1 points nothing wraps around, and half of its frequencies do, since Z(-f) = Z(f)^T.
    """
    batch, rows, columns, *kernel_size = kernels.shape
    forward, backward, share = _hartley_tables(*kernel_size, kernels.dtype, kernels.device)
    taps = kernels.permute(3, 4, 0, 1, 2).reshape(forward.shape[1], -1)
    transformed = (forward @ taps).view(3, -1, rows, columns)
    h, a, b = transformed  # each (frequencies * B, M, C)
    z = torch.baddbmm(h @ h.mT, a, b.mT, alpha=-2)
    z.diagonal(dim1=1, dim2=2).sub_(1)
    values = share @ _sum_of_squares(z).view(-1, batch)
    if not with_grad:
        return values, None
    in_both = (z + z.mT) @ h
    # each product takes the place of an operand that is needed no more
    torch.bmm(z, b, out=h)
    torch.bmm(z.mT, a, out=b)
    a.copy_(in_both)
    grad = backward @ transformed.view(backward.shape[1], -1)
    return values, grad.view(*kernel_size, batch, rows, columns).permute(2, 3, 4, 0, 1)


@functools.lru_cache(maxsize=64)
def _hartley_tables(kh, kw, dtype, device):
    """The transforms of `_penalty_by_frequency` as small matrices, and each frequency's share in the value.

    Returns:
        tuple[Tensor, Tensor, Tensor]: taps -> H, A, B (3 F, kh * kw); Z B, (Z + Z^T) H, Z^T A -> taps
        (kh * kw, 3 F); (F,), where F = (N + 1) / 2 of the N = (2 kh - 1) (2 kw - 1) frequencies.
    """
    points = torch.tensor([2 * kh - 1, 2 * kw - 1], dtype=torch.float64)
    frequencies = torch.tensor(_half_plane((kh, kw), (1, 1)), dtype=torch.float64)
    taps = torch.cartesian_prod(torch.arange(kh), torch.arange(kw)).double()
    phase = (2 * math.pi * frequencies / points) @ taps.T
    cos, sin = phase.cos(), phase.sin()
    # all frequencies but 0 stand for their opposite too
    share = torch.full((len(frequencies), 1), 2 / points.prod().item(), dtype=torch.float64)
    share[0] /= 2
    forward = torch.cat([cos + sin, cos, sin])
    backward = torch.cat([-2 * share * cos, share * (cos + sin), -2 * share * sin]).T.contiguous()
    return tuple(table.to(device, dtype) for table in (forward, backward, 0.5 * share.squeeze(1)))


def _half_plane(size, step):
    """One of each pair d, -d of the multiples of `step` within (-size, size), (0, 0) being the first."""
    widest = (size[1] - 1) // step[1] * step[1]
    shifts = [(y, x) for y in range(0, size[0], step[0]) for x in range(-widest, size[1], step[1])]
    return [shift for shift in shifts if shift >= (0, 0)]


def _sum_of_squares(matrices):
    """(B, M, N) -> (B,); row by row, since the norm of a whole matrix adds up its entries naively."""
    return torch.linalg.vector_norm(matrices, dim=2).square().sum(1)
