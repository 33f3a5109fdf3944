"""What the files of this package share: the arguments of a convolution, and its polyphase form."""

import torch.nn.functional as F


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


def polyphase(kernels, stride):
    """A strided convolution as one of stride 1, to which the pixels of each phase are channels of their own.

    P[m, (c, a, b), i, j] = W[m, c, a + i * sh, b + j * sw], zero where W has no such tap.

    Args:
        kernels (Tensor): (B, M, C, kh, kw).
        stride (tuple[int, int]): (sh, sw), not above (kh, kw).

    Returns:
        Tensor: (B, M, C * sh * sw, ceil(kh / sh), ceil(kw / sw)).
    """
    (kh, kw), (sh, sw) = kernels.shape[-2:], stride
    kernels = F.pad(kernels, (0, -kw % sw, 0, -kh % sh))
    # (B, M, C, i, a, j, b) -> (B, M, C, a, b, i, j)
    kernels = kernels.unflatten(4, (-1, sw)).unflatten(3, (-1, sh)).permute(0, 1, 2, 4, 6, 3, 5)
    return kernels.flatten(2, 4)
