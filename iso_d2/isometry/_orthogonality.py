"""Value and gradient of the orthogonality penalty, in closed form and with few matrix products.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020. What differs: see
``orthogonality.py``, which defines what is computed here.
"""

import math
import threading

import torch

from ._conv import from_polyphase, matmul_precision, polyphase
from ._tables import half_plane, hartley_tables, is_plain, pair_tables, pairs_of_taps

_memory = threading.local()


def norms(kind, kernels, grad, mode, fraction=1.0, generator=None, tf32=False):
    """The norm n of Gram - delta, so that the loss is 1/2 n^2, and the gradient of the latter.

    Args:
        kind (tuple): of the convolutions, from `group_by_kind`.
        kernels (Tensor): (B * g, M / g, C / g, kh, kw), contiguous, float32 or float64.
        grad (Tensor or None): of the same shape, to write the gradient to.
        mode, fraction, generator: as in `orthogonality_losses`.
        tf32 (bool): whether a GPU may round operands of the gradient's products to TF32.

    Returns:
        Tensor: (B,), over all groups of a convolution.
    """
    stride, groups = _within(kind[0], kernels), kind[1]
    operand, over_columns, shift = gram_operand(kernels, stride, mode)
    out = grad
    if grad is not None and operand is not kernels:
        out = torch.empty_like(operand)
    if has_frequencies(operand.shape[3:], shift):
        rows = _rows_by_frequency(operand, over_columns, out, tf32, fraction, generator)
    else:
        rows = _rows_by_shift(operand, over_columns, shift, out, tf32)
    if out is not grad:
        grad.copy_(from_polyphase(out, stride, kernels.shape[3:]))
    # row by row first: the norm of a whole matrix would add up its entries less exactly
    return torch.linalg.vector_norm(rows.unflatten(1, (-1, groups)), dim=(0, 2, 3))


def multiply_adds(kernels, stride, mode):
    """int: multiply-adds of the matrix products in `norms` with gradient."""
    operand, over_columns, shift = gram_operand(kernels, _within(stride, kernels), mode)
    batch, *matrix, kh, kw = operand.shape
    rows, columns = reversed(matrix) if over_columns else matrix
    product = batch * rows * rows * columns
    if has_frequencies(operand.shape[3:], shift):
        frequencies = len(half_plane((kh, kw), (1, 1)))
        transforms = 6 * frequencies * kh * kw * batch * rows * columns
        return (5 * frequencies - 3) * product + transforms
    pairs = sum(len(here) for pairs in pairs_of_taps(kh, kw, shift) for here, _ in pairs)
    sums = 2 * pairs * kh * kw * batch * rows * columns
    return (2 * kh * kw + 3 * pairs) * product + sums


def _within(stride, kernels):
    """A larger stride than the kernel only skips more pixels, which are not read anyway."""
    return tuple(map(min, stride, kernels.shape[3:]))


def gram_operand(kernels, stride, mode):
    """The kernels to form the Gram of, whether it is that of their columns, and the shift that counts.

    Args:
        kernels (Tensor): (B, M, C, kh, kw).
        stride (tuple[int, int]): not above the kernel's size.

    Returns:
        tuple[Tensor, bool, tuple[int, int]]: (B, rows, columns, kh', kw'), and of the Gram's shifts the
        multiples that are taken.
    """
    _, out_channels, in_channels, *_ = kernels.shape
    if mode == "paper" or stride == (1, 1):
        return kernels, out_channels > in_channels, stride
    if out_channels > in_channels * math.prod(stride):
        return polyphase(kernels, stride).contiguous(), True, (1, 1)
    # the Gram of the polyphase components over the outputs is that of the kernel at multiples of the stride
    return kernels, False, stride


def has_frequencies(taps, shift):
    """Whether the Gram of a kernel of so many taps is taken by frequency."""
    return shift == (1, 1) and taps != (1, 1)


def _rows_by_shift(kernels, over_columns, shift, grad, tf32):
    """One matrix product for the shifts with as many taps each; G(-d) = G(d)^T, so half of them are enough.

    Returns:
        Tensor: (shifts, B, N), the norms of the rows of each Gram, those for d and -d in one.
    """
    # (B, M, C, taps) -> (B, taps, K, N): sums over K, Gram of size N
    axes = (0, 3, 1, 2) if over_columns else (0, 3, 2, 1)
    taps = kernels.flatten(3).permute(axes)
    batch, count, sums, size = taps.shape
    if count > 1:
        taps = _buffer("taps", taps.shape, taps).copy_(taps)
    flat = taps.flatten(1, 2)
    gram = flat.mT @ flat
    gram.diagonal(dim1=1, dim2=2).sub_(1)
    rows = [_norms_of_rows(gram)[None]]
    if grad is not None:
        wanted = grad.flatten(3).permute(axes)
        sum_of_grads = _buffer("sum", taps.shape, taps) if count > 1 else wanted
        with matmul_precision(kernels.device, tf32):
            _multiply(flat, gram, 2, sum_of_grads.flatten(1, 2))
    tables = pair_tables(*kernels.shape[3:], shift, like=kernels)
    for index, back in zip(tables[::2], tables[1::2], strict=True):
        shifts = len(index)
        # (B * shifts, 2, pairs * K, N): for each shift d the taps t and t + d
        both = _buffer("work", (batch, index.numel(), sums, size), taps)
        both = torch.index_select(taps, 1, index.flatten(), out=both).view(batch * shifts, 2, -1, size)
        left, right = both.unbind(1)
        # d and -d: the square of sqrt 2
        gram = _multiply(left.mT, right, math.sqrt(2))
        rows.append(_norms_of_rows(gram).view(batch, shifts, size).transpose(0, 1))
        if grad is not None:
            with matmul_precision(kernels.device, tf32):
                grads = _buffer("z", both.shape, both)
                _multiply(right, gram.mT, math.sqrt(2), grads[:, 0])
                _multiply(left, gram, math.sqrt(2), grads[:, 1])
                grads = grads.view(batch, -1, sums * size)
                sum_of_grads.flatten(2).baddbmm_(back.expand(batch, -1, -1), grads)
    if grad is not None and count > 1:
        wanted.copy_(sum_of_grads)
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _rows_by_frequency(kernels, over_columns, grad, tf32, fraction, generator):
    """The penalty at all shifts, by Parseval's theorem, in real arithmetic.

    With A = sum_t W(t) cos(f.t) and B the same with sin, the Gram's transform at frequency f is R + iJ with
    R = A A^T + B B^T symmetric and J = A B^T - B A^T antisymmetric. Its norm is that of the one real matrix
        Z = R - J - I = H H^T - 2 A B^T - I,    H = A + B,
    and the gradient of 1/2 ||Z||^2 is
        (Z + Z^T) H - 2 Z B  in A,    (Z + Z^T) H - 2 Z^T A  in B:
    each frequency takes two real products for the value and three for the gradient. Written-out complex
    arithmetic would take four and four. Frequency 0 has no B and needs one of each.
    On a grid of 2k - 1 points nothing wraps around. Half of its frequencies are enough, since Z(-f) = Z(f)^T.
    A, B and I are scaled, so that the sum of the ||Z||^2 is that over all shifts.

    Returns:
        Tensor: (F, B, N), the norms of the rows of Z, at all frequencies or those drawn.
    """
    batch, *matrix, kh, kw = kernels.shape
    tables, identity = hartley_tables(kh, kw, like=kernels)
    if fraction < 1:
        tables, identity = _drawn(tables, identity, fraction, generator)
    frequencies = len(identity)
    forward, backward = tables.view(2, 3 * frequencies, kh * kw)
    size = matrix[1] if over_columns else matrix[0]
    work = _buffer("work", (4, frequencies * batch, *matrix), kernels)
    torch.mm(forward, kernels.view(-1, kh * kw).T, out=work[:3].view(3 * frequencies, -1))
    a, h, b, both = work
    z = _buffer("z", (frequencies * batch, size, size), kernels)
    # frequency 0 comes first, but not among frequencies drawn at random
    some = slice(batch if fraction == 1 else 0, None)
    if over_columns:
        torch.bmm(h.mT, h, out=z)
        z[some].baddbmm_(a[some].mT, b[some], alpha=-2)
    else:
        torch.bmm(h, h.mT, out=z)
        z[some].baddbmm_(a[some], b[some].mT, alpha=-2)
    z.view(frequencies, batch, size, size).diagonal(dim1=2, dim2=3).sub_(identity.view(-1, 1, 1))
    if grad is not None:
        twice = torch.add(z, z.mT, out=_buffer("twice", z.shape, z))
        with matmul_precision(kernels.device, tf32):
            # each product overwrites an operand that is no longer needed
            if over_columns:
                torch.bmm(h, twice, out=both)
                torch.bmm(b[some], z[some].mT, out=h[some])
                torch.bmm(a[some], z[some], out=b[some])
            else:
                torch.bmm(twice, h, out=both)
                torch.bmm(z[some], b[some], out=h[some])
                torch.bmm(z[some].mT, a[some], out=b[some])
            taps = _buffer("taps", (kh * kw, kernels.numel() // (kh * kw)), kernels)
            torch.mm(backward.T, work[1:].view(3 * frequencies, -1), out=taps)
        grad.view(-1, kh * kw).T.copy_(taps)
    return _norms_of_rows(z).view(frequencies, batch, size)


def _drawn(tables, identity, fraction, generator):
    """The tables of frequencies drawn at random, weighted by how many frequencies each stands for."""
    total = len(identity)
    count = math.ceil(fraction * total)
    device = identity.device if generator is None else generator.device
    drawn = torch.randperm(total, generator=generator, device=device)[:count].to(identity.device)
    weight = total / count
    return tables.index_select(1, drawn) * weight**0.25, identity[drawn] * weight**0.5


def _norms_of_rows(matrices):
    return torch.linalg.vector_norm(matrices, dim=-1)


def _multiply(left, right, factor, out=None):
    """factor * left @ right, in one launch."""
    out = left.new_empty(len(left), left.shape[1], right.shape[2]) if out is None else out
    return out.baddbmm_(left, right, beta=0, alpha=factor)


def _buffer(name, shape, like):
    """A tensor for use within one call; on a CPU each call gets the same memory.

    There, new memory of many megabytes costs a page fault every 4 KiB. On a GPU PyTorch reuses memory itself.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling() or not is_plain(like):
        return like.new_empty(shape)
    kept, key, size = vars(_memory), (name, like.dtype), math.prod(shape)
    if key not in kept or len(kept[key]) < size:
        with torch.inference_mode(False):
            kept[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return kept[key][:size].view(shape)
