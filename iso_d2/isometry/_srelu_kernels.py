"""SReLU as one Triton kernel forward and one backward. Only a call that is to use them imports this file.

They see a tensor (N, C, ...) as lines of one channel each, with `depth` values along a line:

    contiguous      N * C lines of H * W values that lie side by side; line l has channel l mod C
    channels last   C lines of N * H * W values that are C apart

A program works on tiles of LINES x DEPTH values, in float32 or float64. Offsets are int64.
"""

import math

import torch

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "the Triton kernels of SReLU need triton, which comes with PyTorch for CUDA on Linux "
        f"({error}): install it, or leave the kernels off (use_triton_srelu, ISO_D2_TRITON_SRELU)"
    ) from error

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TILE = 4096  # values
WIDTH = 128  # at most, of a tile in the direction in which values lie side by side
PROGRAMS = 1024  # about, backward; each leaves a partial sum of each of its lines
WARPS = 8  # of a program; with 4 the backward kernel runs out of registers where rows have an odd length


@triton.jit
def _lines_of_program(threshold, lines, channels, dtype, LAST: tl.constexpr, LINES: tl.constexpr):
    """A program's lines, (1, LINES), their thresholds in dtype, and its number among their programs."""
    blocks = tl.cdiv(lines, LINES)
    first = (tl.program_id(0) % blocks).to(tl.int64) * LINES
    line = first + tl.arange(0, LINES)[None, :]
    channel = (first % channels).to(tl.int32) + tl.arange(0, LINES)[None, :]
    if not LAST:
        channel = channel % channels
    bound = tl.load(threshold + channel, mask=line < lines, other=0.0).to(dtype)
    return line, bound, (tl.program_id(0) // blocks).to(tl.int64)


@triton.jit
def _offsets(line, place, lines, depth, LAST: tl.constexpr, UNIT: tl.constexpr):
    """Where the values of a tile lie, and which of them there are, (DEPTH, LINES)."""
    # // UNIT * UNIT changes nothing: it tells the compiler how many values it may load at once
    if LAST:
        lines = lines // UNIT * UNIT
        offset = place * lines + line
    else:
        depth = depth // UNIT * UNIT
        offset = line * depth + place
    return offset, (line < lines) & (place < depth)


@triton.jit
def _forward_kernel(
    x, residual, threshold, y, lines, depth, channels, SUM: tl.constexpr,
    WIDE: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr, LINES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    line, bound, step = _lines_of_program(threshold, lines, channels, x.dtype.element_ty, LAST, LINES)
    place = step * DEPTH + tl.arange(0, DEPTH)[:, None]
    offset, inside = _offsets(line, place, lines, depth, LAST, UNIT)
    total = tl.load(x + offset, mask=inside, other=0.0).to(WIDE)
    if SUM:
        total += tl.load(residual + offset, mask=inside, other=0.0).to(WIDE)
    # Rounding after the maximum gives what rounding the sum gives, since b needs no rounding. As in
    # torch.maximum, a NaN on either side gives NaN.
    result = tl.maximum(total, bound.to(WIDE), propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + offset, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad, y, threshold, passed, sums, steps, lines, depth, channels, SUMS: tl.constexpr,
    WIDE: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr, LINES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    line, bound, strip = _lines_of_program(threshold, lines, channels, y.dtype.element_ty, LAST, LINES)
    place = strip * steps * DEPTH + tl.arange(0, DEPTH)[:, None]
    held = tl.zeros([DEPTH, LINES], WIDE)
    step = 0
    while step < steps:  # Triton 3.6 cannot interpret range(steps) with NumPy 2.4
        offset, inside = _offsets(line, place, lines, depth, LAST, UNIT)
        upstream = tl.load(grad + offset, mask=inside, other=0.0).to(WIDE)
        # as in PyTorch's threshold_backward: a tie stops the gradient, a NaN lets it pass
        stops = tl.load(y + offset, mask=inside, other=0.0).to(WIDE) - bound.to(WIDE) <= 0
        tl.store(passed + offset, tl.where(stops, 0.0, upstream).to(passed.dtype.element_ty), mask=inside)
        if SUMS:
            held += tl.where(stops, upstream, 0.0)
        place += DEPTH
        step += 1
    if SUMS:
        tl.store(sums + strip * lines + line, tl.sum(held, 0)[None, :], mask=line < lines)


def takes(x):
    """Whether the kernels can read x, (N, C, ...): its dtype, its layout, and that it is not empty."""
    return x.dtype in DTYPES and x.numel() > 0 and (x.is_contiguous() or _is_channels_last(x))


def forward(x, residual, threshold, inplace):
    """max(x + residual, b), in x itself or in one new tensor.

    Args:
        x (Tensor): (N, C, ...) that :func:`takes` takes.
        residual (Tensor or None): of the shape and dtype of x.
        threshold (Tensor): b, (C,), of any floating dtype.
        inplace (bool): overwrite x.
    """
    y = x if inplace else torch.empty_like(x)
    layout, tile, blocks, steps = _tiling(x)
    other = x if residual is None else _laid_as(x, residual)
    with torch.cuda.device_of(x):
        _forward_kernel[(blocks * steps,)](x, other, threshold, y, *layout, SUM=residual is not None, **tile)
    return y


def backward(grad, y, threshold, with_sums):
    """The gradient of x, and that of the thresholds, (C,), at least float32, or None.

    Each program sums over its own values, then PyTorch over the programs: no atomic additions, so that two
    runs give the same bits.

    Args:
        grad, y (Tensor): (N, C, ...), the gradient of the output, and the output.
        threshold (Tensor): as of :func:`forward`.
        with_sums (bool): whether the gradient of the thresholds is wanted.
    """
    passed = torch.empty_like(y)
    layout, tile, blocks, steps = _tiling(y)
    steps_each = triton.cdiv(steps, max(1, PROGRAMS // blocks))
    strips = triton.cdiv(steps, steps_each)
    dtype = torch.promote_types(y.dtype, torch.float32)
    sums = y.new_empty(strips, layout[0], dtype=dtype) if with_sums else passed
    with torch.cuda.device_of(y):
        _backward_kernel[(blocks * strips,)](
            _laid_as(y, grad), y, threshold, passed, sums, steps_each, *layout, SUMS=with_sums, **tile
        )
    return passed, sums.view(-1, y.shape[1]).sum(0) if with_sums else None


def _tiling(x):
    """The kernels' arguments for the layout of x and for a tile; blocks of lines; steps along a line."""
    channels, last = x.shape[1], _is_channels_last(x)
    lines = channels if last else len(x) * channels
    depth = x.numel() // lines
    side = lines if last else depth
    width = min(WIDTH, triton.next_power_of_2(side))
    tile = {
        "WIDE": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "LAST": last,
        "UNIT": math.gcd(side, 16),
        "LINES": width if last else TILE // width,
        "DEPTH": TILE // width if last else width,
        "num_warps": WARPS,
    }
    blocks, steps = triton.cdiv(lines, tile["LINES"]), triton.cdiv(depth, tile["DEPTH"])
    return (lines, depth, channels), tile, blocks, steps


def _is_channels_last(x):
    """Whether channels lie side by side: channels last in any number of dimensions, or (N, C)."""
    return x.movedim(1, -1).is_contiguous()


def _laid_as(x, other):
    """The other tensor in the memory layout of x."""
    return other if other.stride() == x.stride() else torch.empty_like(x).copy_(other)
