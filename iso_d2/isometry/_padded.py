"""The orthogonality penalty of layers of many shapes in few launches, for GPUs, where each costs time.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020. What differs: see
``orthogonality.py``, which defines what is computed here. Kernels are padded with zeros to a few shapes, and
those of one shape share their products. Identities are subtracted within the layers' own sizes alone, so that
padding changes neither values nor gradients.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from ._conv import matmul_precision
from ._orthogonality import gram_operand, has_frequencies, multiply_adds
from ._tables import cached, half_plane, hartley_tables, tap_pair_tables, tap_pairs

# Padding may add so many multiply-adds for each launch saved, 16 us of an H100 at half of its rate in
# float32, and altogether this share of those without padding.
WORTH_A_LAUNCH, MOST_ADDED = 2**28, 0.5


@functools.lru_cache(maxsize=256)
def fits(stride, groups, shape, mode):
    """Whether layers can be padded here: channels in eights, no groups, nothing to rearrange first.

    Nor kernels of more than 11x11, whose pairs of taps would take a table of many megabytes.
    """
    eights = shape[0] % 8 == shape[1] % 8 == 0
    return groups == 1 and eights and math.prod(shape[2:]) <= 121 and _form(stride, shape, mode) is not None


def half_squares(mode, tf32, layers, order, weights, grad):
    """1/2 n^2 of each layer, (len(weights),) in `order`, and all gradients, flat, to `grad`.

    Args:
        mode (str): as in `orthogonality_losses`.
        tf32 (bool): whether a GPU may round operands of the gradient's products to TF32.
        layers (tuple): (stride, shape) of each of `weights`.
        order (sequence[int]): positions in `weights`.
        weights (sequence[Tensor]): of layers that `fits` accepts.
        grad (Tensor or None): float32 or float64, with as many entries as all weights.
    """
    device = weights[0].device
    with torch.autocast(device.type, enabled=False), matmul_precision(device):
        buckets, unit, width = _buckets(layers, mode)
        flat = torch.cat([*(weight.reshape(-1) for weight in weights), weights[0].new_zeros(unit)])
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        gather, scatter, entries, diagonal, scale = _tables(layers, mode, tuple(order), like=flat)
        kernels = flat.view(-1, unit).index_select(0, gather).view(-1)
        grads = kernels if grad is None else torch.empty_like(kernels)
        areas, squares = zip(*((bucket.area, bucket.squares) for bucket in buckets), strict=True)
        grams = flat.new_empty(sum(squares) + width)
        *parts, last = grams.split([*squares, width])
        last.zero_()  # pads the values
        parts = zip(buckets, kernels.split(areas), parts, grads.split(areas), strict=True)
        runs = [bucket.run(*tensors) for bucket, *tensors in parts]
        for run in runs:
            next(run)
        grams.index_add_(0, diagonal, scale, alpha=-1)
        norms = torch.linalg.vector_norm(grams.view(-1, width), dim=1)[entries]
        values = torch.baddbmm(scale[:1], norms[:, None], norms[:, :, None], beta=0, alpha=0.5)
        if grad is not None:
            with matmul_precision(device, tf32):
                for run in runs:
                    next(run, None)
            torch.index_select(grads.view(-1, unit), 0, scatter, out=grad.view(-1, unit))
        return values.view(-1)


class _Bucket(NamedTuple):
    """Layers that are computed together, as kernels (rows, columns, *taps)."""

    form: Callable  # one of the three below
    taps: tuple
    shift: tuple  # of the Gram's shifts the multiples that are taken
    over_columns: bool  # whether the Gram is that of the columns
    rows: int
    columns: int
    layers: tuple  # their positions

    size = property(lambda self: self.columns if self.over_columns else self.rows)
    area = property(lambda self: len(self.layers) * self.rows * self.columns * math.prod(self.taps))
    squares = property(lambda self: len(self.layers) * len(_blocks(*self[:3])) * self.size**2)
    launches = property(lambda self: {_by_matrix: 2, _by_pair: 5, _by_frequency: 8}[self.form])

    def joined(self, other):
        size = max(self.rows, other.rows), max(self.columns, other.columns)
        return _Bucket(*self[:4], *size, self.layers + other.layers)

    def multiply_adds(self):
        kernels = torch.empty(len(self.layers), self.rows, self.columns, *self.taps, device="meta")
        return multiply_adds(kernels, self.shift, "paper")

    def run(self, kernels, grams, grad):
        """A generator: writes `grams` but for the identities, and when these are subtracted `grad`."""
        taps = math.prod(self.taps)
        return self.form(
            self, kernels.view(-1, taps), grams.view(-1, self.size, self.size), grad.view(-1, taps)
        )

    def matrices(self, kernels):
        kernels = kernels.view(-1, self.rows, self.columns)
        return kernels.mT if self.over_columns else kernels


def _by_matrix(bucket, kernels, gram, grad):
    kernels, grad = bucket.matrices(kernels), bucket.matrices(grad)
    torch.bmm(kernels, kernels.mT, out=gram)
    yield
    torch.baddbmm(grad, gram, kernels, beta=0, alpha=2, out=grad)


def _by_pair(bucket, kernels, grams, grad):
    """G(t - t') for every pair of taps; the gradient in t is the sum of 2 (G(t - t') - delta) W(t')."""
    ends, same = tap_pair_tables(*bucket.taps, bucket.shift, like=kernels)
    both = torch.mm(ends, kernels.T).view(2, -1)
    left, right = map(bucket.matrices, both)
    torch.mm(same, torch.bmm(left, right.mT).view(len(same), -1), out=grams.view(len(same), -1))
    yield
    torch.baddbmm(left, grams, right, beta=0, alpha=2, out=left)
    torch.mm(both[0].view(len(same), -1).T, ends[: len(same)], out=grad)


def _by_frequency(bucket, kernels, z, grad):
    """As `_orthogonality._rows_by_frequency`, which explains it."""
    tables, _ = hartley_tables(*bucket.taps, like=kernels)
    forward, backward = tables.view(2, -1, kernels.shape[1])
    work = kernels.new_empty(4, len(z), bucket.rows, bucket.columns)
    torch.mm(forward, kernels.T, out=work[:3].view(len(forward), -1))
    a, h, b, both = map(bucket.matrices, work)
    torch.bmm(h, h.mT, out=z)
    a, h_too, b, most = (x[len(bucket.layers) :] for x in (a, h, b, z))  # frequency 0 comes first
    torch.baddbmm(most, a, b.mT, alpha=-2, out=most)  # with another view for `out` it would be copied
    yield
    # each product overwrites an operand that is no longer needed
    torch.bmm(z + z.mT, h, out=both)
    torch.bmm(most, b, out=h_too)
    torch.bmm(most.mT, a, out=b)
    torch.mm(work[1:].view(len(forward), -1).T, backward, out=grad)


@functools.lru_cache(maxsize=32)
def _buckets(layers, mode):
    """Layers of one shape together, then those of several for which padding is worth it, the cheapest first.

    Returns:
        tuple[list[_Bucket], int, int]: and what the rows of all kernels, and the Grams, are multiples of.
    """
    kinds = {}
    for position, (stride, shape) in enumerate(layers):
        kinds.setdefault((*_form(stride, shape, mode), *shape[:2]), []).append(position)
    buckets = [_Bucket(*kind, tuple(positions)) for kind, positions in kinds.items()]
    unit = math.gcd(*(bucket.columns * math.prod(bucket.taps) for bucket in buckets))
    allowed = MOST_ADDED * sum(bucket.multiply_adds() for bucket in buckets)
    while True:
        joins = []
        for one, two in itertools.combinations(buckets, 2):
            if one[:4] == two[:4]:
                both = one.joined(two)
                added = both.multiply_adds() - one.multiply_adds() - two.multiply_adds()
                if added <= min(allowed, WORTH_A_LAUNCH * one.launches):
                    joins.append((added / one.launches, added, one, two, both))
        if not joins:
            return buckets, unit, math.gcd(*(bucket.size for bucket in buckets)) ** 2
        _, added, one, two, both = min(joins, key=lambda join: join[:2])
        allowed -= added
        buckets = [*(bucket for bucket in buckets if bucket not in (one, two)), both]


@functools.lru_cache(maxsize=32)
def _blocks(form, taps, shift):
    """list[tuple[float, bool]]: of each Gram of a layer its identity's scale and whether its value counts."""
    if form is _by_frequency:
        points = math.prod(2 * k - 1 for k in taps)
        return [(math.sqrt((1 if f == (0, 0) else 2) / points), True) for f in half_plane(taps, (1, 1))]
    pairs = tap_pairs(*taps, shift)
    apart = [d for *_, d in pairs]
    return [(float(a == b), apart.index(d) == i) for i, (a, b, d) in enumerate(pairs)]


def _form(stride, shape, mode):
    """The first fields of a bucket; None if the kernel has to be rearranged first."""
    kernels, taps = torch.empty(1, *shape, device="meta"), tuple(shape[2:])
    operand, over_columns, shift = gram_operand(kernels, tuple(map(min, stride, taps)), mode)
    form = _by_frequency if has_frequencies(taps, shift) else _by_matrix if taps == (1, 1) else _by_pair
    return (form, taps, shift, over_columns) if operand is kernels else None


@cached
def _tables(layers, mode, order):
    """What copies weights to padded kernels and back, and what finds the values and the diagonals of Grams.

    Returns:
        list[Tensor]: for each row of padded kernels that of the weights, the last one being 0; the same back;
        (len(order), most), the rows of a layer's Grams, the last one being 0; (D,), the places of identities;
        (D,), their scale.
    """
    buckets, unit, width = _buckets(layers, mode)
    arange = functools.partial(torch.arange, device="cpu")
    rows = [math.prod(shape) // unit for _, shape in layers]
    starts = [0, *itertools.accumulate(rows)]
    gather, entries, diagonal, scales, gram = [], {}, [], [], 0
    for bucket in buckets:
        marks = _blocks(*bucket[:3])
        counted = [i for i, (_, counts) in enumerate(marks) if counts]
        scale = {i: scale for i, (scale, _) in enumerate(marks) if scale}
        blocks = gram + bucket.size**2 * arange(bucket.squares // bucket.size**2).view(len(marks), -1)
        gram += bucket.squares
        for layer, first in zip(bucket.layers, blocks.T, strict=True):
            shape = layers[layer][1]
            index = arange(starts[layer], starts[layer + 1]).view(shape[0], -1)
            padding = bucket.columns * math.prod(bucket.taps) // unit - index.shape[1], bucket.rows - shape[0]
            gather.append(F.pad(index, (0, padding[0], 0, padding[1]), value=starts[-1]).flatten())
            in_a_gram = arange(bucket.size**2 // width)
            entries[layer] = (first[counted, None] // width + in_a_gram).flatten()
            places = arange(shape[bucket.over_columns]) * (bucket.size + 1)
            diagonal.append((first[list(scale), None] + places).flatten())
            scales.append(
                torch.tensor(list(scale.values()), dtype=torch.float64, device="cpu").repeat_interleave(
                    len(places)
                )
            )
    gather = torch.cat(gather)
    scatter = gather.new_empty(starts[-1] + 1).index_copy_(0, gather, arange(len(gather)))
    entries = pad_sequence([entries[layer] for layer in order], True, gram // width)
    return [gather, scatter[:-1], entries, torch.cat(diagonal), torch.cat(scales)]
