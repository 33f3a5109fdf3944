"""Shifted ReLU and the residual scale.

Paper: Qi, You, Wang, Ma, Malik, "Deep Isometric Learning for Visual Recognition", ICML 2020,
https://arxiv.org/abs/2006.16992. What differs: the shifted ReLU is one operation that keeps one tensor for
backward, not two operations and two tensors. It also does the sum of a residual block.
"""

import math
import os

import torch
from torch import nn

# Whether CUDA tensors take the Triton kernels
_triton = os.environ.get("ISO_D2_TRITON_SRELU") == "1"


def use_triton_srelu(enabled=True):
    """Switch SReLU's Triton kernels on or off in this process; off is the default.

    On CUDA they are one kernel forward, with the residual sum, and one kernel and a sum backward. The values
    are the same; the thresholds' gradient may differ in rounding. Nothing changes for other devices, layouts
    and dtypes, under torch.compile and tracing, and in second derivatives.

    ISO_D2_TRITON_SRELU=1 in the environment switches them on from the start, in every process of a training.

    Args:
        enabled (bool): False switches them off.

    Raises:
        ImportError: they are to be on, and there is no triton.
    """
    global _triton
    if enabled:
        from . import _srelu_kernels  # noqa: F401, the error comes here and not in the first step
    _triton = bool(enabled)


def srelu_mean_square(threshold, mean_square=1.0):
    """The mean square of max(z, b) for a normal z with mean 0 and mean square q.

        q (t^2 Phi(t) + 1 - Phi(t) + t phi(t)),    t = b / sqrt(q)

    phi and Phi are the density and the distribution function of the standard normal.

    Args:
        threshold (float): b.
        mean_square (float): q.

    Returns:
        float

    Raises:
        ValueError: a threshold that is NaN or plus infinity; a mean square that is not finite and above 0.
    """
    b, q = float(threshold), float(mean_square)
    if math.isnan(b) or b == math.inf:
        raise ValueError(f"the threshold of an SReLU must be a number below infinity, got {threshold}")
    if not (q > 0 and math.isfinite(q)):
        raise ValueError(f"the mean square must be a finite number above 0, got {mean_square}")
    if b == -math.inf:
        return q
    t = b / math.sqrt(q)
    below = math.erfc(-t / math.sqrt(2)) / 2
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return q * (t * t * below + 1 - below + t * density)


def srelu_gain(threshold):
    """The gain that restores the mean square of max(z, b) for a standard normal z: 1 / root mean square.

    1.149 at b = -1; sqrt(2) at b = 0, as for ReLU; 1 in the limit b -> minus infinity.

    Args:
        threshold (float): b.

    Returns:
        float

    Raises:
        ValueError: as for :func:`srelu_mean_square`.

    Source: NFNet (Brock et al., 2021, https://arxiv.org/abs/2102.06171), section 3, which divides by the
    standard deviation instead; the integral is elementary.
    """
    return srelu_mean_square(threshold) ** -0.5


class SReLU(nn.Module):
    """Shifted ReLU, max(x, b) with one threshold b per channel, or max(x + residual, b) as one operator.

    For backward it keeps only its output, which a following convolution keeps anyway. So nothing may change
    that output in place. Where x equals b the gradient goes to b, as in relu(x - b) + b. The gradient
    supports neither the transforms of torch.func (grad, vmap, jvp) nor forward mode.

    Args:
        num_channels (int): C, the size of dimension 1 of the input.
        init (float): initial value of every threshold.
        learnable (bool): False keeps `threshold` at `init`; the state dict holds it all the same.
        inplace (bool): overwrite the input x with the output, as with nn.ReLU; for an x that nothing else
            needs, like the output of a convolution.

    Attributes:
        threshold (Parameter): b, shape (C,).

    Raises:
        ValueError: num_channels below 1; an input that is not (N, C, ...); a residual of another shape.

    Source: report, eq. (7).
    """

    def __init__(self, num_channels, init=-1.0, learnable=True, inplace=False):
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"SReLU num_channels must be at least 1, got {num_channels}")
        self.threshold = nn.Parameter(torch.full((num_channels,), float(init)), requires_grad=learnable)
        self.inplace = inplace

    def forward(self, x, residual=None):
        """(N, C, ...), and a residual of that shape or none -> the same shape, dtype and memory format."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            x = x if residual is None else x + residual
            bound = _broadcast(self.threshold, x)
            # not maximum, which halves the gradient where x equals b; a NaN passes
            return torch.where(x <= bound, bound, x)
        if x.dim() < 2 or x.shape[1] != len(self.threshold):
            raise ValueError(
                f"SReLU of {len(self.threshold)} channels takes (N, {len(self.threshold)}, ...), "
                f"got an input of shape {tuple(x.shape)}"
            )
        if residual is not None:
            if residual.shape != x.shape:
                raise ValueError(
                    f"SReLU takes a residual of the input's shape {tuple(x.shape)}, "
                    f"got {tuple(residual.shape)}"
                )
            dtype = torch.promote_types(x.dtype, residual.dtype)
            x, residual = x.to(dtype), residual.to(dtype)
        # never overwrite a view: the layer before returns one if it has a backward hook
        inplace = self.inplace and not x._is_view()
        kernels = _kernels(x, residual, self.threshold) if _triton else None
        if kernels or torch.is_grad_enabled():
            return _ShiftedReLU.apply(x, residual, self.threshold, inplace, kernels)
        return _shifted_relu(x, residual, self.threshold.to(x.dtype), inplace)

    def extra_repr(self):
        learnable = self.threshold.requires_grad
        return f"{len(self.threshold)}, learnable={learnable}" + (", inplace=True" if self.inplace else "")


class SharedScale(nn.Module):
    """One learnable scalar for a whole residual branch, x * s, or one for each of its channels.

    Args:
        init (float): initial value of s; 0 makes a residual block the identity.
        channels (int or None): None: one scalar as in the paper; else one for each of this many channels.

    Attributes:
        scale (Parameter): s, (C,) or 0-dim, which does not promote a half-precision x.

    Source: report, section 3, "Isometry in Residual Structure"; scales per channel: LayerScale (Touvron et
    al., 2021, https://arxiv.org/abs/2103.17239, eq. (4)).
    """

    def __init__(self, init=0.0, channels=None):
        super().__init__()
        start = torch.tensor(float(init))
        self.scale = nn.Parameter(start if channels is None else start.repeat(channels))

    def forward(self, x):
        """Any shape, with scales per channel (N, C, ...) -> the same shape and dtype."""
        return x * (self.scale if self.scale.dim() == 0 else _broadcast(self.scale, x))


def _kernels(x, residual, threshold):
    """The Triton kernels if they can take these tensors, else None."""
    tensors = (x, threshold) if residual is None else (x, threshold, residual)
    # TRITON_INTERPRET=1 is how Triton runs kernels without a GPU
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    if any(type(t) not in (torch.Tensor, nn.Parameter) or t.device != x.device for t in tensors):
        return None
    from . import _srelu_kernels

    return _srelu_kernels if _srelu_kernels.takes(x) else None


def _shifted_relu(x, residual, threshold, inplace):
    """max(x + residual, b), in x itself or in one new tensor."""
    bound = _broadcast(threshold, x)
    if residual is None:
        return torch.maximum(x, bound, out=x) if inplace else torch.maximum(x, bound)
    out = x.add_(residual) if inplace else x + residual
    return torch.maximum(out, bound, out=out)


class _ShiftedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, threshold, inplace, kernels):
        if kernels:
            y = kernels.forward(x, residual, threshold, inplace)
        else:
            threshold = threshold.to(x.dtype)
            y = _shifted_relu(x, residual, threshold, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y, threshold)
        ctx.kernels = kernels
        return y

    @staticmethod
    def backward(ctx, grad):
        y, threshold = ctx.saved_tensors
        # gradients are enabled for a second derivative, which the kernels do not have
        if ctx.kernels and not torch.is_grad_enabled():
            passed, grad_threshold = ctx.kernels.backward(grad, y, threshold, ctx.needs_input_grad[2])
        else:
            # y > b where y - b > 0; ReLU's backward is one vectorised pass, while comparing and selecting is
            # several times slower on a CPU
            passed = torch.ops.aten.threshold_backward(grad, y - _broadcast(threshold, y), 0)
            grad_threshold = None
            if ctx.needs_input_grad[2]:
                # the rest of the gradient goes to the threshold
                grad_threshold = _sum_by_channel(grad) - _sum_by_channel(passed)
        grad_x, grad_residual = (passed if needed else None for needed in ctx.needs_input_grad[:2])
        return grad_x, grad_residual, grad_threshold, None, None


def _sum_by_channel(x):
    """(N, C, ...) -> (C,), at least float32: half precision would lose most digits of so long a sum."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    return x.sum(dims, dtype=torch.promote_types(x.dtype, torch.float32))


def _broadcast(threshold, x):
    """(C,) -> (C, 1, ...) to broadcast to (N, C, ...), in x's dtype, since torch.maximum would promote."""
    return threshold.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
