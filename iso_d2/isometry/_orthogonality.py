"""Value and gradient of the orthogonality penalty, in closed form and with few matrix products.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020. What differs: see
``orthogonality.py``, which defines what is computed here.
"""

import functools
import math
import threading

import torch

from ._conv import polyphase

_memory = threading.local()


def gram_operand(kernels, stride, mode):
    """The tensor to form the Gram of, and the shift whose multiples count.

    Args:
        kernels (Tensor): (B, M, C, kh, kw).

    Returns:
        tuple[Tensor, tuple[int, int]]: (B, rows, columns, kh', kw') and the shift.
    """
    _, out_channels, in_channels, *kernel_size = kernels.shape
    # a larger stride than the kernel only skips more pixels, which are not read anyway
    stride = tuple(min(s, k) for s, k in zip(stride, kernel_size, strict=True))
    if mode == "paper":
        return (kernels.transpose(1, 2) if out_channels > in_channels else kernels), stride
    if out_channels > in_channels * math.prod(stride):
        return polyphase(kernels, stride).transpose(1, 2), (1, 1)
    # the Gram of P over its outputs is that of the kernel at the multiples of the stride
    return kernels, stride


class Penalty(torch.autograd.Function):
    """`penalty` for autograd: (B, M, C, kh, kw), shift, fraction, generator -> (B,)."""

    @staticmethod
    def forward(ctx, kernels, shift, fraction, generator):
        values, grad = penalty(kernels, shift, True, fraction, generator)
        ctx.save_for_backward(grad)
        return values

    @staticmethod
    def backward(ctx, upstream):
        # once_differentiable would silently treat the stored gradient as a constant
        if torch.is_grad_enabled():
            raise RuntimeError("the orthogonality loss has no second derivatives: use create_graph=False")
        (grad,) = ctx.saved_tensors
        return grad * upstream.view(-1, 1, 1, 1, 1), None, None, None


def penalty(kernels, shift, with_grad, fraction=1.0, generator=None):
    """1/2 ||G - delta||^2 of the Gram G at the multiples of `shift`, and its gradient or None.

    Args:
        kernels (Tensor): (B, M, C, kh, kw), float32 or float64.
        shift ((int, int)): as from `gram_operand`.
        with_grad (bool): whether to compute the gradient.
        fraction, generator: as in `orthogonality_losses`.

    Returns:
        tuple[Tensor, Tensor or None]: (B,), and (B, M, C, kh, kw).
    """
    if _has_frequencies(kernels, shift):
        return _penalty_by_frequency(kernels, with_grad, fraction, generator)
    return _penalty_by_shift(kernels, shift, with_grad)


def multiply_adds(kernels, shift):
    """int: multiply-adds of the matrix products in `penalty` with gradient."""
    batch, rows, columns, *size = kernels.shape
    product = batch * rows * rows * columns
    if _has_frequencies(kernels, shift):
        frequencies = len(_half_plane(size, (1, 1)))
        transforms = 6 * frequencies * math.prod(size) * batch * rows * columns
        return (5 * frequencies - 3) * product + transforms
    taps = [(size[0] - dy) * (size[1] - abs(dx)) for dy, dx in _half_plane(size, shift)]
    return (2 * taps[0] + 3 * sum(taps[1:])) * product


def _has_frequencies(kernels, shift):
    return shift == (1, 1) and kernels.shape[3:] != (1, 1)


def _penalty_by_shift(kernels, shift, with_grad):
    """One matrix product for each shift; G(-d) = G(d)^T, so half of the shifts are enough."""
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


def _penalty_by_frequency(kernels, with_grad, fraction, generator):
    """The penalty at all shifts, by Parseval's theorem, in real arithmetic.

    With A = sum_t W(t) cos(f.t) and B the same with sin, the Gram's transform at frequency f is R + iJ with
    R = A A^T + B B^T symmetric and J = A B^T - B A^T antisymmetric. Its norm is that of the one real matrix
        Z = R - J - I = H H^T - 2 A B^T - I,    H = A + B,
    and the gradient of 1/2 ||Z||^2 is
        (Z + Z^T) H - 2 Z B  in A,    (Z + Z^T) H - 2 Z^T A  in B:
    each frequency takes two real products for the value and three for the gradient. Written-out complex
    arithmetic would take four and four. Frequency 0 has no B and needs one of each.
    On a grid of 2k - 1 points nothing wraps around. Half of its frequencies are enough, since Z(-f) = Z(f)^T.
    """
    batch, rows, columns, *kernel_size = kernels.shape
    # the tables of a fake tensor are fake, too, and must not be cached
    make_tables = _hartley_tables if _is_plain(kernels) else _hartley_tables.__wrapped__
    forward, backward, share = make_tables(*kernel_size, kernels.dtype, kernels.device)
    if fraction < 1:
        forward, backward, share = _drawn(forward, backward, share, fraction, generator)
    frequencies = len(share)
    taps = kernels.permute(3, 4, 0, 1, 2).reshape(forward.shape[1], -1)
    transformed = _buffer("transformed", (len(forward), taps.shape[1]), taps)
    torch.mm(forward, taps, out=transformed)
    h, a, b = transformed.view(3, frequencies * batch, rows, columns)
    z = _buffer("z", (frequencies * batch, rows, rows), taps)
    torch.bmm(h, h.mT, out=z)
    # frequency 0 comes first, but not among frequencies drawn at random
    complex_ones = slice(batch if fraction == 1 else 0, None)
    torch.baddbmm(z[complex_ones], a[complex_ones], b[complex_ones].mT, alpha=-2, out=z[complex_ones])
    z.diagonal(dim1=1, dim2=2).sub_(1)
    values = (share[:, None] * _sum_of_squares(z).view(-1, batch)).sum(0)
    if not with_grad:
        return values, None
    twice = torch.add(z, z.mT, out=_buffer("twice", z.shape, z))
    in_both = torch.bmm(twice, h, out=_buffer("in_both", h.shape, h))
    # each product overwrites an operand that is no longer needed
    h[: complex_ones.start].zero_()
    torch.bmm(z[complex_ones], b[complex_ones], out=h[complex_ones])
    torch.bmm(z[complex_ones].mT, a[complex_ones], out=b[complex_ones])
    a.copy_(in_both)
    grad = backward @ transformed
    return values, grad.view(*kernel_size, batch, rows, columns).permute(2, 3, 4, 0, 1)


def _drawn(forward, backward, share, fraction, generator):
    """The tables of frequencies drawn at random, weighted by how many frequencies each stands for."""
    total = len(share)
    count = math.ceil(fraction * total)
    drawn = torch.randperm(total, generator=generator)[:count].to(share.device)
    rows = (torch.arange(3, device=share.device)[:, None] * total + drawn).flatten()
    weight = total / count
    return forward[rows], backward[:, rows] * weight, share[drawn] * weight


def _buffer(name, shape, like):
    """A tensor for use within one call; on a CPU each call gets the same memory.

    There, new memory of many megabytes costs a page fault every 4 KiB. On a GPU PyTorch reuses memory itself.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling() or not _is_plain(like):
        return like.new_empty(shape)
    kept, key, size = vars(_memory), (name, like.dtype), math.prod(shape)
    if key not in kept or len(kept[key]) < size:
        with torch.inference_mode(False):
            kept[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return kept[key][:size].view(shape)


def _is_plain(tensor):
    """Whether a tensor holds numbers: not a fake tensor nor another subclass."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


@functools.lru_cache(maxsize=64)
def _hartley_tables(kh, kw, dtype, device):
    """The transforms of `_penalty_by_frequency` as small matrices, and each frequency's share in the value.

    Returns:
        tuple[Tensor, Tensor, Tensor]: taps -> H, A, B (3 F, kh * kw); Z B, (Z + Z^T) H, Z^T A -> taps
        (kh * kw, 3 F); (F,), F as in `frequency_tables`.
    """
    # bypass the cache: under fake tensors the result is fake
    cos, sin, share = frequency_tables.__wrapped__(kh, kw, torch.float64, torch.device("cpu"))
    forward = torch.cat([cos + sin, cos, sin])
    share = share[:, None]
    backward = torch.cat([-2 * share * cos, share * (cos + sin), -2 * share * sin]).T.contiguous()
    return tuple(table.to(device, dtype) for table in (forward, backward, 0.5 * share.squeeze(1)))


@functools.lru_cache(maxsize=64)
def frequency_tables(kh, kw, dtype, device):
    """The Fourier transform of a kernel on the smallest grid on which no shift of its Gram wraps around.

    Returns:
        tuple[Tensor, Tensor, Tensor]: taps -> real part, and taps -> negated imaginary part, (F, kh * kw)
        each; the share of all frequencies that each one stands for, (F,). F = (N + 1) / 2 of the
        N = (2 kh - 1) (2 kw - 1) frequencies; the others are their opposites.
    """
    points = (2 * kh - 1, 2 * kw - 1)
    like = {"dtype": torch.float64, "device": "cpu"}  # not the default device
    frequencies = torch.tensor(_half_plane((kh, kw), (1, 1)), **like)
    taps = torch.cartesian_prod(torch.arange(kh, **like), torch.arange(kw, **like))
    angles = 2 * math.pi * frequencies / torch.tensor(points, **like)
    phase = (angles[:, None] * taps).sum(2)
    share = torch.full((len(frequencies),), 2 / math.prod(points), **like)
    share[0] /= 2
    return tuple(table.to(device, dtype) for table in (phase.cos(), phase.sin(), share))


def _half_plane(size, step):
    """One of each pair d, -d of the multiples of `step` within (-size, size), (0, 0) being the first."""
    widest = (size[1] - 1) // step[1] * step[1]
    shifts = [(y, x) for y in range(0, size[0], step[0]) for x in range(-widest, size[1], step[1])]
    return [shift for shift in shifts if shift >= (0, 0)]


def _sum_of_squares(matrices):
    """(B, M, N) -> (B,), row by row: the norm of a whole matrix would add up its entries less exactly."""
    return torch.linalg.vector_norm(matrices, dim=2).square().sum(1)
