"""The orthogonality penalty of convolutions, and the Gram of a kernel that it measures.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020,
https://arxiv.org/abs/2006.16992. What differs: the value and its gradient are computed together in closed
form, which is much cheaper than to differentiate a convolution of the kernel with itself. ``mode="exact"`` is
correct for strided convolutions, too, which the paper's formula is not.
"""

from functools import partial

import torch
import torch.nn.functional as F

from ._conv import check_weight, group_by_kind, losses_by_kind, per_axis, split_groups
from ._orthogonality import multiply_adds, norms
from ._padded import fits, half_squares


def conv_gram(weight, stride=1):
    """Correlate every kernel of a convolution with every other one, eq. (4).

    G[m, m', d] = sum over c, t of W[m, c, t + d] W[m', c, t]. A* is an isometry if G is 1 at m = m', d = 0
    and zero elsewhere.

    Args:
        weight (Tensor): (M, C, kh, kw).
        stride (int or (int, int)): only shifts d that are multiples of it are taken.

    Returns:
        Tensor: (M, M, 2kh - 1, 2kw - 1) at stride 1, in general 2 ((k - 1) // s) + 1 shifts along each axis
        with d = 0 in the middle; differentiable.

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

    mode="paper": the Gram of eq. (4) at the shifts that are multiples of the stride. Where M > C, inputs and
    outputs of the kernel are exchanged first. It equals the formula of the paper's code where
    (k - 1) % stride == 0.

    mode="exact": P, the polyphase components of the kernel, is one convolution of stride 1 with
    E = C min(kh, sh) min(kw, sw) input channels. The Gram is that of P over its M outputs if M <= E, else
    over its E inputs. On a circular grid of n x n pixels, with n divisible by s and
    n / s >= 2 ceil(k / s) - 1, the loss is 1/2 ||A A^T - I||^2 (or A^T A, over the pixels that A reads) for
    one output position. Zero padding at the border is not modelled. The loss is 0 at isometries only.
    mode="paper" agrees with it at stride 1.

    A dilation coprime to the stride only moves the shifts of the Gram apart, so it changes neither.

    The gradient supports neither the transforms of torch.func (grad, vmap, jvp) nor forward mode.

    Args:
        weight (Tensor): (M, C / groups, kh, kw). Float32 and float64 keep their precision; half precision
            is computed in float32, under autocast too.
        stride (int or (int, int)): of the convolution.
        groups (int): the sum over the groups, each a convolution of its own.
        transposed (bool): the weight is that of a transposed convolution, (C_in, C_out / groups, kh, kw).
            This is the adjoint of the convolution with the same weight and stride, and has the same penalty.
            So the argument only changes the words of errors.
        mode (str): "paper" or "exact".

    Returns:
        Tensor: 0-dim, float32 or float64. If the weight requires a gradient, it is computed at once and kept
        until backward.

    Raises:
        ValueError: unknown mode, wrong rank, bad stride, groups that do not divide M.
        RuntimeError: in backward with ``create_graph=True``: there are no second derivatives.

    Source: report, eq. (5) and (6).
    """
    _check_mode(mode)
    check_weight(weight)
    kind = (
        per_axis("stride", stride, 2),
        groups,
        transposed,
        weight.dtype,
        weight.device,
        weight.requires_grad,
    )
    return losses_by_kind(partial(norms, mode=mode), {kind: [(0, weight)]})[0]


def orthogonality_losses(convs, mode="paper", fraction=1.0, generator=None, precision="float32"):
    """The penalty of many convolutions; those of one shape are computed together, on a GPU of several shapes.

    With a `fraction` below 1, value and gradient are unbiased estimates. The penalty of a kernel above 1x1
    at stride 1 is a sum over F = ((2 kh - 1) (2 kw - 1) + 1) / 2 frequencies (13 at 3x3). Each call draws
    n = ceil(fraction * F) of them without replacement and counts each F / n times. With S^2 the variance of
    the F terms (divisor F - 1), the estimate has the variance F^2 (1 / n - 1 / F) S^2. Layers that are
    computed together share the draw. 1x1 kernels are computed in full. So are strided layers, unless
    mode="exact" takes the inputs' side; then the frequencies are those of the polyphase kernel.

    Args:
        convs (iterable[nn.Conv2d | nn.ConvTranspose2d]): frozen ones get a value and cost no gradient.
        mode (str): "paper" or "exact".
        fraction (float): share of the frequencies, above 0 and at most 1 (exact).
        generator (torch.Generator or None): for the draw; None: PyTorch's default one of the weights' device.
            A generator of another device makes each draw wait for a copy.
        precision (str): of the matrix products of the gradient on a CUDA device: "float32", or "tf32", which
            rounds their operands to 10 bits. Values are always float32, since small ones would be wrong with
            TF32. PyTorch's own settings do not count. On a CPU it has no effect.

    Returns:
        Tensor: (len(convs),), each value as `orthogonality_loss` gives it.

    Raises:
        TypeError: anything but those modules.
        ValueError: unknown mode or precision, fraction out of range.
    """
    _check_mode(mode)
    if not 0 < fraction <= 1:
        raise ValueError(f"orthogonality fraction must be above 0 and at most 1, got {fraction}")
    if precision not in ("float32", "tf32"):
        raise ValueError(f"orthogonality precision must be 'float32' or 'tf32', got {precision!r}")
    tf32 = precision == "tf32"
    compute = partial(norms, mode=mode, fraction=fraction, generator=generator, tf32=tf32)
    padded = partial(half_squares, mode, tf32)

    def together(kind):
        stride, groups, _, shape, _, device, _ = kind
        return padded if fraction == 1 and _on_gpu(device) and fits(stride, groups, shape, mode) else None

    return losses_by_kind(compute, group_by_kind(convs, "orthogonality_losses"), _weights_at_once, together)


def orthogonality_multiply_adds(conv, mode="paper"):
    """Count the multiply-adds of the matrix products that the penalty and its gradient take, without padding.

    Args:
        conv (nn.Conv2d | nn.ConvTranspose2d): only its shape is read.
        mode (str): "paper" or "exact".

    Returns:
        int

    Raises:
        ValueError: unknown mode.
    """
    _check_mode(mode)
    weight = torch.empty(1, *conv.weight.shape, device="meta")
    kernels = split_groups(weight, conv.groups, conv.transposed)
    return multiply_adds(kernels, per_axis("stride", conv.stride, 2), mode)


def _check_mode(mode):
    if mode not in ("paper", "exact"):
        raise ValueError(f"orthogonality mode must be 'paper' or 'exact', got {mode!r}")


def _on_gpu(device):
    """Whether launches cost time. What `torch.compile` makes of them is not known."""
    return device.type != "cpu" and not torch.compiler.is_compiling()


def _weights_at_once(device):
    """Layers of one shape share their products, up to so many weights, where they are not padded.

    A larger batch gains nothing, and its buffers take about six times its memory.
    """
    return 2**22 if _on_gpu(device) else 2**20
