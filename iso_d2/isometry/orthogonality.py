"""The orthogonality penalty of convolutions, and the Gram of a kernel that it measures.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020,
https://arxiv.org/abs/2006.16992. What differs: the value and its gradient are computed together, in closed
form, at a fraction of the cost of differentiating a convolution of the kernel with itself; and
``mode="exact"`` measures strided convolutions, which the paper's formula does not.
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn

from ._conv import check_weight, per_axis, split_groups
from ._penalty import Penalty, gram_operand, multiply_adds, penalty

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

    Its gradient takes no transforms of torch.func (grad, vmap, jvp) and no forward-mode derivatives.

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


def orthogonality_losses(convs, mode="paper", fraction=1.0, generator=None):
    """The penalty of many convolutions; those of one shape are computed together.

    With a `fraction` below 1, value and gradient are unbiased estimates. The penalty of a kernel above 1x1
    at stride 1 is a sum over F = ((2 kh - 1) (2 kw - 1) + 1) / 2 frequencies (13 at 3x3). Of these
    n = ceil(fraction * F) are drawn anew at each call, without replacement, and count F / n times. With S^2
    the variance of the F terms (divisor F - 1), the estimate has the variance F^2 (1 / n - 1 / F) S^2.
    Layers that are worked on together share the draw. 1x1 kernels are computed in full, and strided layers
    are unless mode="exact" takes the inputs' side, where the frequencies are those of the polyphase kernel.

    Args:
        convs (iterable[nn.Conv2d | nn.ConvTranspose2d]): frozen ones get a value and cost no gradient.
        mode (str): "paper" or "exact".
        fraction (float): of the frequencies, above 0 and up to 1, which is exact.
        generator (torch.Generator or None): a CPU generator for the draw; None: PyTorch's own.

    Returns:
        Tensor: (len(convs),), each value as `orthogonality_loss` gives it.

    Raises:
        TypeError: anything but those modules.
        ValueError: unknown mode, fraction out of range.
    """
    _check_mode(mode)
    if not 0 < fraction <= 1:
        raise ValueError(f"orthogonality fraction must be above 0 and at most 1, got {fraction}")
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
        values = _losses(weights, stride, groups, transposed, mode, fraction, generator)
        losses.update(zip(positions, values, strict=True))
    return torch.stack([losses[i] for i in range(len(losses))]) if losses else torch.zeros(0)


def orthogonality_multiply_adds(conv, mode="paper"):
    """Multiply-adds of the matrix products in value and gradient of the penalty of a convolution.

    Args:
        conv (nn.Conv2d | nn.ConvTranspose2d): its shape is read, not its weight.
        mode (str): "paper" or "exact".

    Returns:
        int

    Raises:
        ValueError: unknown mode.
    """
    _check_mode(mode)
    weight = torch.empty(1, *conv.weight.shape, device="meta")
    kernels = split_groups(weight, conv.groups, isinstance(conv, nn.ConvTranspose2d))
    return multiply_adds(*gram_operand(kernels, per_axis("stride", conv.stride, 2), mode))


def _check_mode(mode):
    if mode not in ("paper", "exact"):
        raise ValueError(f"orthogonality mode must be 'paper' or 'exact', got {mode!r}")


def _losses(weights, stride, groups, transposed, mode, fraction=1.0, generator=None):
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
            operand, shift = gram_operand(kernels, stride, mode)
            if operand.requires_grad:
                values = Penalty.apply(operand, shift, fraction, generator)
            else:
                values, _ = penalty(operand, shift, False, fraction, generator)
            losses.append(values.view(-1, groups).sum(1))
    return torch.cat(losses)
