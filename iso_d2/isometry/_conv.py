"""What the files of this package share: arguments and kernels of convolutions, and losses of many at once."""

import contextlib
from collections import defaultdict
from functools import partial

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
    """Weights of one shape as (B * g, M / g, C / g, *k), float64 if they are, else float32.

    The kernels are contiguous. One weight is not copied if it is so already: do not write to them.
    """
    stacked = torch.stack(tuple(weights)) if len(weights) > 1 else weights[0].unsqueeze(0)
    # weights in channels-last layout stay so when they are stacked
    kernels = split_groups(stacked.contiguous(), groups, transposed)
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


def losses_by_kind(norms, kinds, weights_at_once=None, together=None):
    """1/2 n^2 of each convolution, its gradient computed with it; those of one kind are computed together.

    Everything is computed without autocast, by one node of autograd for all convolutions on one device.

    Args:
        norms (callable): (kind, kernels, grad) -> n, (B,). `kernels` is (B * g, M / g, C / g, kh, kw). `grad`
            is None or of that shape, to write the gradient of 1/2 n^2 to.
        kinds (dict): from `group_by_kind`. Frozen weights get a value and cost no gradient.
        weights_at_once (callable or None): device -> the number of weights that `kernels` may have, unless
            they are those of one convolution. None: any number.

    Returns:
        Tensor: (number of convolutions,).
    """
    families = defaultdict(dict)
    for kind, members in kinds.items():
        *_, dtype, device, requires_grad = kind
        at_once = together and together(kind)
        family = torch.promote_types(dtype, torch.float32), device, requires_grad, at_once
        families[family][kind] = members
    losses = {}
    for (dtype, device, requires_grad, at_once), family in families.items():
        positions, weights = zip(*(member for members in family.values() for member in members), strict=True)
        counts = {kind: len(members) for kind, members in family.items()}
        if at_once:
            layers = [(kind[0], kind[3]) for kind, count in counts.items() for _ in range(count)]
            compute = partial(at_once, tuple(layers))
        else:
            most = weights_at_once(device) if weights_at_once else sum(w.numel() for w in weights)
            compute = partial(_half_squares, norms, counts, dtype, most)
        order = sorted(range(len(positions)), key=positions.__getitem__)
        if requires_grad and torch.is_grad_enabled():
            values = _WithGradient.apply(compute, dtype, order, *weights)
        else:
            values = compute(order, weights, None)
        if len(families) == 1:
            return values
        losses.update(zip(sorted(positions), values, strict=True))
    return torch.stack([losses[i] for i in range(len(losses))]) if losses else torch.zeros(0)


def _half_squares(norms, counts, dtype, at_once, order, weights, grad):
    """Weights, kind by kind -> (len(weights),) in `order`, and all gradients, flat, to `grad`."""
    found, first, start = [], 0, 0
    device = weights[0].device
    with torch.autocast(device.type, enabled=False), matmul_precision(device):
        for kind, count in counts.items():
            some = max(1, at_once // weights[first].numel())
            for at in range(first, first + count, some):
                kernels = stack_kernels(weights[at : min(at + some, first + count)], *kind[1:3])
                stop = start + kernels.numel()
                found.append(
                    norms(kind, kernels, None if grad is None else grad[start:stop].view_as(kernels))
                )
                start = stop
            first += count
        values = torch.cat(found).square().mul(0.5)
        return torch.stack([values[i] for i in order])


@contextlib.contextmanager
def matmul_precision(device, tf32=False):
    """Whether products of float32 matrices on a CUDA device may round operands to TF32, whatever is set."""
    # torch.compile cannot trace the switch: compiled, the process's own setting counts
    if device.type != "cuda" or torch.compiler.is_compiling():
        yield
        return
    matmul = torch.backends.cuda.matmul
    # older versions of PyTorch have the other switch alone
    key, value = "fp32_precision", "tf32" if tf32 else "ieee"
    if not hasattr(matmul, key):
        key, value = "allow_tf32", tf32
    before = getattr(matmul, key)
    if key == "fp32_precision" and before == torch.backends.fp32_precision:
        before = "none"  # it follows the setting of all backends, and shall go on to do so
    setattr(matmul, key, value)
    try:
        yield
    finally:
        setattr(matmul, key, before)


class _WithGradient(torch.autograd.Function):
    """Losses whose gradients are known with them: `_half_squares`, dtype, order, *weights -> (len(weights),).

    The gradients are views of one block: one that is kept keeps the memory of all.
    """

    @staticmethod
    def forward(ctx, compute, dtype, order, *weights):
        grad = weights[0].new_empty(sum(weight.numel() for weight in weights), dtype=dtype)
        values = compute(order, weights, grad)
        ctx.save_for_backward(grad)
        ctx.order, ctx.like = order, [(weight.shape, weight.dtype) for weight in weights]
        return values

    @staticmethod
    def backward(ctx, upstream):
        # once_differentiable would silently treat the stored gradient as a constant
        if torch.is_grad_enabled():
            raise RuntimeError("the orthogonality loss has no second derivatives: use create_graph=False")
        (grad,) = ctx.saved_tensors
        sizes = [shape.numel() for shape, _ in ctx.like]
        if upstream.stride() == (0,):  # that of a sum: one factor for all
            scaled = (grad * upstream[0]).split(sizes)
        else:
            places = sorted(range(len(sizes)), key=ctx.order.__getitem__)
            scaled = [part * upstream[i] for part, i in zip(grad.split(sizes), places, strict=True)]
        like = zip(scaled, ctx.like, strict=True)
        return None, None, None, *(part.view(shape).to(dtype) for part, (shape, dtype) in like)


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


def from_polyphase(components, stride, size):
    """(B, M, C * sh * sw, i, j) -> (B, M, C, kh, kw): the inverse of `polyphase`, and its adjoint."""
    tiles = components.unflatten(2, (-1, *stride)).permute(0, 1, 2, 5, 3, 6, 4)  # (B, M, C, i, a, j, b)
    return tiles.flatten(5, 6).flatten(3, 4)[..., : size[0], : size[1]]


def cut_to_tiles(kernels, size):
    """(B, M, C, kh, kw) -> (B, M, C, i, height, j, width): kernels in tiles, zeros at the end."""
    (kh, kw), (height, width) = kernels.shape[-2:], size
    kernels = F.pad(kernels, (0, -kw % width, 0, -kh % height))
    return kernels.unflatten(4, (-1, width)).unflatten(3, (-1, height))
