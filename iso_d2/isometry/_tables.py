"""Small matrices that the penalties take kernels apart with: transforms, and pairs of taps."""

import functools
import itertools
import math
from collections import defaultdict

import torch

# of tables as they are made, which shall not be on the default device
_CPU = {"device": "cpu"}
_DOUBLE = {"dtype": torch.float64, **_CPU}


def is_plain(tensor):
    """Whether a tensor holds numbers: not a fake tensor nor another subclass."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def cached(make):
    """make(*sizes) -> tensors of float64, as (*sizes, like) -> the same of the type and device of `like`."""

    def moved(sizes, dtype, device):
        made = make(*sizes)
        return [table.to(device, dtype if table.is_floating_point() else None) for table in made]

    kept = functools.lru_cache(maxsize=64)(moved)

    @functools.wraps(make)
    def tables(*sizes, like):
        # tables for a fake tensor are fake, too, and must not be cached
        return (kept if is_plain(like) else moved)(sizes, like.dtype, like.device)

    return tables


@cached
def hartley_tables(kh, kw):
    """The transforms of a kernel whose Gram is taken by frequency.

    Returns:
        tuple[Tensor, Tensor]: (6, F, kh * kw) for F as in `frequency_tables`: from taps to A, H, B, and back
        from Z B, Z^T A, (Z + Z^T) H; (F,), the scale of the identity.
    """
    cos, sin, share = frequency_tables(kh, kw)
    to_products = torch.stack([cos, cos + sin, sin])
    from_products = torch.stack([-2 * cos, -2 * sin, cos + sin])
    from_products[0, 0] = 0  # frequency 0 has no Z B, its place holds H
    return torch.cat([to_products, from_products]) * share[:, None] ** 0.25, share.sqrt()


@cached
def pair_tables(kh, kw, shift):
    """What gathers pairs of taps and adds up their gradients.

    Returns:
        list[Tensor]: for shifts with as many pairs each, in turn: (shifts, 2, pairs), the taps t and t + d of
        a shift d; (kh * kw, shifts * 2 * pairs), 1 where a place holds a tap.
    """
    tables = []
    for pairs in pairs_of_taps(kh, kw, shift):
        index = torch.tensor(pairs, **_CPU)
        tables += [index, (torch.arange(kh * kw, **_CPU)[:, None] == index.flatten()).double()]
    return tables


@cached
def tap_pair_tables(kh, kw, shift):
    """What takes the pairs of `tap_pairs` from a kernel, and what adds up those of a distance.

    Returns:
        list[Tensor]: (2 P, kh * kw), 1 at each t, then at each t'; (P, P), 1 where the distance is the same.
    """
    here, there, apart = (torch.tensor(x, **_CPU) for x in zip(*tap_pairs(kh, kw, shift), strict=True))
    ends = torch.cat([here, there])[:, None] == torch.arange(kh * kw, **_CPU)
    return [ends.double(), (apart[:, None] == apart).all(2).double()]


def tap_pairs(kh, kw, shift):
    """All taps (t, t', t - t') whose distance is a multiple of `shift`, in both orders, t = t' included."""
    taps = list(itertools.product(range(kh), range(kw)))
    pairs = (((y - v, x - w), a, b) for a, (y, x) in enumerate(taps) for b, (v, w) in enumerate(taps))
    return [(a, b, d) for d, a, b in pairs if d[0] % shift[0] == d[1] % shift[1] == 0]


@cached
def spectral_tables(kh, kw, stride):
    """The transform of the polyphase components of a kernel, straight from its taps.

    Returns:
        tuple[Tensor, Tensor]: (2 F * sh * sw, kh * kw), for each of the F frequencies A, then B, of each
        phase; (F,), the root of the share of all frequencies that each one stands for.
    """
    (sh, sw), (height, width) = stride, (-(-kh // stride[0]), -(-kw // stride[1]))
    cos, sin, share = frequency_tables(height, width)
    y, x = torch.cartesian_prod(torch.arange(kh, **_CPU), torch.arange(kw, **_CPU)).T
    waves = torch.stack([cos, sin], 1)[..., y // sh * width + x // sw]  # (F, 2, taps)
    phases = torch.arange(sh * sw, **_CPU)[:, None] == y % sh * sw + x % sw
    return (waves[:, :, None] * phases).flatten(0, 2), share.sqrt()


def frequency_tables(kh, kw):
    """The Fourier transform of a kernel on the smallest grid on which no shift of its Gram wraps around.

    Returns:
        tuple[Tensor, Tensor, Tensor]: taps -> real part, and taps -> negated imaginary part, (F, kh * kw)
        each; the share of all frequencies that each one stands for, (F,). F = (N + 1) / 2 of the
        N = (2 kh - 1) (2 kw - 1) frequencies; the others are their opposites.
    """
    points = (2 * kh - 1, 2 * kw - 1)
    frequencies = torch.tensor(half_plane((kh, kw), (1, 1)), **_DOUBLE)
    taps = torch.cartesian_prod(torch.arange(kh, **_DOUBLE), torch.arange(kw, **_DOUBLE))
    angles = 2 * math.pi * frequencies / torch.tensor(points, **_DOUBLE)
    phase = (angles[:, None] * taps).sum(2)
    share = torch.full((len(frequencies),), 2 / math.prod(points), **_DOUBLE)
    share[0] /= 2
    return phase.cos(), phase.sin(), share


def pairs_of_taps(kh, kw, shift):
    """Pairs of taps, t and t + d, of half of the shifts d but 0; shifts with as many pairs are together.

    Returns:
        list[list[tuple[list[int], list[int]]]]: each shift's (t, t + d).
    """
    alike = defaultdict(list)
    for dy, dx in half_plane((kh, kw), shift)[1:]:
        here = [y * kw + x for y in range(kh - dy) for x in range(max(0, -dx), kw - max(0, dx))]
        alike[len(here)].append((here, [tap + dy * kw + dx for tap in here]))
    return list(alike.values())


def half_plane(size, step):
    """One of each pair d, -d of the multiples of `step` within (-size, size), (0, 0) being the first."""
    widest = (size[1] - 1) // step[1] * step[1]
    shifts = [(y, x) for y in range(0, size[0], step[0]) for x in range(-widest, size[1], step[1])]
    return [shift for shift in shifts if shift >= (0, 0)]


@cached
def complex_product_table():
    """(A x, B x, A y, B y) -> (Re u, Im u, Im u, -Re u) of u = (A + i B)(x + i y): a list of one."""
    rows = [[1, 0, 0, -1], [0, 1, 1, 0], [0, 1, 1, 0], [-1, 0, 0, 1]]
    return [torch.tensor(rows, **_DOUBLE)]
