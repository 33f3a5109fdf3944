"""Value and gradient of the orthogonality penalty, in closed form and with few matrix products.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020. What differs: see
``orthogonality.py``, which says what is computed; this says how.
"""

import functools
import math
import threading

import torch

from ._conv import polyphase

_memory = threading.local()


def gram_operand(kernels, stride, mode):
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


class Penalty(torch.autograd.Function):
    """`penalty` for autograd: (B, M, C, kh, kw), shift, fraction, generator -> (B,)."""

    @staticmethod
    def forward(ctx, kernels, shift, fraction, generator):
        values, grad = penalty(kernels, shift, True, fraction, generator)
        ctx.save_for_backward(grad)
        return values

    @staticmethod
    def backward(ctx, upstream):
        # once_differentiable would take the stored gradient for a constant without a word
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
        fraction, generator: as of `orthogonality_losses`.

    Returns:
        tuple[Tensor, Tensor or None]: (B,), and (B, M, C, kh, kw).
    """
    if _has_frequencies(kernels, shift):
        return _penalty_by_frequency(kernels, with_grad, fraction, generator)
    return _penalty_by_shift(kernels, shift, with_grad)


def multiply_adds(kernels, shift):
    """How many the matrix products of `penalty` with gradient take, as an int."""
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


def _penalty_by_frequency(kernels, with_grad, fraction, generator):
    """The penalty at all shifts, by Parseval's theorem, in real arithmetic.

    With A = sum_t W(t) cos(f.t) and B the same with sin, the Gram's transform at frequency f is R + iJ with
    R = A A^T + B B^T symmetric and J = A B^T - B A^T antisymmetric. Its norm is that of the one real matrix
        Z = R - J - I = H H^T - 2 A B^T - I,    H = A + B,
    and the gradient of 1/2 ||Z||^2 is
        (Z + Z^T) H - 2 Z B  in A,    (Z + Z^T) H - 2 Z^T A  in B:
    two real products a frequency for the value and three for the gradient, against four and four for complex
    arithmetic written out. Frequency 0 has no B and needs one of each.
    On a grid of 2k - 1 points nothing wraps around, and half of its frequencies do, since Z(-f) = Z(f)^T.
    """
    batch, rows, columns, *kernel_size = kernels.shape
    # a fake tensor's tables are fake, too, and must not be kept
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
    # of all frequencies the first is 0; of those that are drawn it may be any
    complex_ones = slice(batch if fraction == 1 else 0, None)
    torch.baddbmm(z[complex_ones], a[complex_ones], b[complex_ones].mT, alpha=-2, out=z[complex_ones])
    z.diagonal(dim1=1, dim2=2).sub_(1)
    values = (share[:, None] * _sum_of_squares(z).view(-1, batch)).sum(0)
    if not with_grad:
        return values, None
    twice = torch.add(z, z.mT, out=_buffer("twice", z.shape, z))
    in_both = torch.bmm(twice, h, out=_buffer("in_both", h.shape, h))
    # each product takes the place of an operand that is needed no more
    h[: complex_ones.start].zero_()
    torch.bmm(z[complex_ones], b[complex_ones], out=h[complex_ones])
    torch.bmm(z[complex_ones].mT, a[complex_ones], out=b[complex_ones])
    a.copy_(in_both)
    grad = backward @ transformed
    return values, grad.view(*kernel_size, batch, rows, columns).permute(2, 3, 4, 0, 1)


def _drawn(forward, backward, share, fraction, generator):
    """The tables of some frequencies, drawn at random, each with the weight of all that it stands for."""
    total = len(share)
    count = math.ceil(fraction * total)
    drawn = torch.randperm(total, generator=generator)[:count].to(share.device)
    rows = (torch.arange(3, device=share.device)[:, None] * total + drawn).flatten()
    weight = total / count
    return forward[rows], backward[:, rows] * weight, share[drawn] * weight


def _buffer(name, shape, like):
    """A tensor to be used until the end of this call: on a CPU the same memory each time.

    New memory of many megabytes costs a page fault every 4 KiB there; on a GPU PyTorch keeps it anyway.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling() or not _is_plain(like):
        return like.new_empty(shape)
    kept, key, size = vars(_memory), (name, like.dtype), math.prod(shape)
    if key not in kept or len(kept[key]) < size:
        with torch.inference_mode(False):
            kept[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return kept[key][:size].view(shape)


def _is_plain(tensor):
    """Whether it holds numbers itself: no fake tensor, no other subclass."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


@functools.lru_cache(maxsize=64)
def _hartley_tables(kh, kw, dtype, device):
    """The transforms of `_penalty_by_frequency` as small matrices, and each frequency's share in the value.

    Returns:
        tuple[Tensor, Tensor, Tensor]: taps -> H, A, B (3 F, kh * kw); Z B, (Z + Z^T) H, Z^T A -> taps
        (kh * kw, 3 F); (F,), F as of `frequency_tables`.
    """
    # not the kept ones, which under fake tensors are of another kind
    cos, sin, share = frequency_tables.__wrapped__(kh, kw, torch.float64, torch.device("cpu"))
    forward = torch.cat([cos + sin, cos, sin])
    share = share[:, None]
    backward = torch.cat([-2 * share * cos, share * (cos + sin), -2 * share * sin]).T.contiguous()
    return tuple(table.to(device, dtype) for table in (forward, backward, 0.5 * share.squeeze(1)))


@functools.lru_cache(maxsize=64)
def frequency_tables(kh, kw, dtype, device):
    """The Fourier transform of a kernel on the least grid on which no shifts of its Gram wrap around.

    Returns:
        tuple[Tensor, Tensor, Tensor]: taps -> real part, and imaginary part but for its sign, (F, kh * kw);
        how much of all each frequency stands for, (F,), where F = (N + 1) / 2 of the N = (2 kh - 1) (2 kw -
        1) frequencies, the others being their opposites.
    """
    points = (2 * kh - 1, 2 * kw - 1)
    like = {"dtype": torch.float64, "device": "cpu"}  # whatever the default device
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
    """(B, M, N) -> (B,); row by row, since the norm of a whole matrix adds up its entries naively."""
    return torch.linalg.vector_norm(matrices, dim=2).square().sum(1)
