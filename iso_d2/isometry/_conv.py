"""What the files of this package share: arguments of convolutions, their kernels, and the polyphase form."""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn


def per_axis(name, value, axes):
    """An int or a sequence of ints as a tuple with one positive int for each of the `axes` spatial axes."""
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or any(v < 1 for v in values):
        raise ValueError(f"{name} must be a positive int or {axes} of them, got {value}")
    return values


def check_weight(weight, ranks=(4,)):
    """Raise ValueError unless `weight` has one of the given ranks."""
    if weight.dim() not in ranks:
        accepted = " or ".join(str(rank) for rank in ranks)
        raise ValueError(
            f"a convolution weight must have {accepted} dimensions (M, C / groups, *kernel_size), "
            f"got shape {tuple(weight.shape)}"
        )


def split_groups(weights, groups, transposed=False):
    """(B, M, C / g, *k) -> (B * g, M / g, C / g, *k): each group is a convolution of its own."""
    channels = weights.shape[1]
    if groups < 1 or channels % groups:
        side = "input" if transposed else "output"
        raise ValueError(f"groups must divide the {channels} {side} channels of the weight, got {groups}")
    return weights.unflatten(1, (groups, channels // groups)).flatten(0, 1)


def stack_kernels(weights, groups, transposed=False):
    """Weights of one shape as (B * g, M / g, C / g, *k), float64 if they are, else float32."""
    kernels = split_groups(torch.stack(tuple(weights)), groups, transposed)
    return kernels.to(torch.promote_types(kernels.dtype, torch.float32))


def group_by_kind(convs, caller):
    """Find the convolutions that can be computed together.

    Args:
        convs (iterable[nn.Conv2d | nn.ConvTranspose2d]): any.
        caller (str): named in the error.

    Returns:
        dict: (stride, groups, transposed, *what else must agree) -> list of (position in `convs`, weight).

    Raises:
        TypeError: anything but those modules.
    """
    kinds = defaultdict(list)
    for position, conv in enumerate(convs):
        if not isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
            raise TypeError(f"{caller} takes nn.Conv2d and nn.ConvTranspose2d, got {type(conv).__name__}")
        weight = conv.weight
        kind = conv.stride, conv.groups, conv.transposed
        kinds[(*kind, weight.shape, weight.dtype, weight.device, weight.requires_grad)].append(
            (position, weight)
        )
    return kinds


def map_by_kind(function, convs, caller):
    """function(kind, weights) -> (len(weights),), called for each kind of `convs` -> (len(convs),)."""
    values = {}
    for kind, members in group_by_kind(convs, caller).items():
        positions, weights = zip(*members, strict=True)
        values.update(zip(positions, function(kind, weights), strict=True))
    return torch.stack([values[i] for i in range(len(values))]) if values else torch.zeros(0)


def polyphase(kernels, stride):
    """A strided convolution as one of stride 1 that takes the pixels of each phase as separate channels.

    P[m, (c, a, b), i, j] = W[m, c, a + i * sh, b + j * sw], zero where W has no such tap.

    Args:
        kernels (Tensor): (B, M, C, kh, kw).
        stride (tuple[int, int]): (sh, sw), not above (kh, kw).

    Returns:
        Tensor: (B, M, C * sh * sw, ceil(kh / sh), ceil(kw / sw)).
    """
    # (B, M, C, i, a, j, b) -> (B, M, C, a, b, i, j)
    return cut_to_tiles(kernels, stride).permute(0, 1, 2, 4, 6, 3, 5).flatten(2, 4)


def cut_to_tiles(kernels, size):
    """(B, M, C, kh, kw) -> (B, M, C, i, height, j, width): kernels in tiles, zeros at the end."""
    (kh, kw), (height, width) = kernels.shape[-2:], size
    kernels = F.pad(kernels, (0, -kw % width, 0, -kh % height))
    return kernels.unflatten(4, (-1, width)).unflatten(3, (-1, height))
