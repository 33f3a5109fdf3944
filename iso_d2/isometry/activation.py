"""Shifted ReLU and the residual scale.

Paper: Qi, You, Wang, Ma, Malik, "Deep Isometric Learning for Visual Recognition", ICML 2020,
https://arxiv.org/abs/2006.16992. What differs: the shifted ReLU is one operation that keeps one tensor for
backward, not two operations and two tensors.
"""

import torch
from torch import nn


class SReLU(nn.Module):
    """Shifted ReLU, max(x, b) with one threshold b a channel.

    It keeps nothing but its output for backward, which a following convolution keeps anyway; so nobody may
    change that output in place. Where x equals b the gradient goes to b, as in relu(x - b) + b.

    Args:
        num_channels (int): C, the size of dimension 1 of the input.
        init (float): the start of every threshold.
        learnable (bool): False keeps `threshold` at `init`; it is in the state dict all the same.

    Attributes:
        threshold (Parameter): b, shape (C,).

    Raises:
        ValueError: num_channels below 1; an input that is not (N, C, ...).

    Source: report, eq. (7).
    """

    def __init__(self, num_channels, init=-1.0, learnable=True):
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"SReLU num_channels must be at least 1, got {num_channels}")
        self.threshold = nn.Parameter(torch.full((num_channels,), float(init)), requires_grad=learnable)

    def forward(self, x):
        """(N, C, ...) -> the same shape, dtype and memory format."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return torch.maximum(x, _broadcast(self.threshold, x))
        if x.dim() < 2 or x.shape[1] != len(self.threshold):
            raise ValueError(
                f"SReLU of {len(self.threshold)} channels takes (N, {len(self.threshold)}, ...), "
                f"got an input of shape {tuple(x.shape)}"
            )
        if torch.is_grad_enabled():
            return _ShiftedReLU.apply(x, self.threshold)
        return torch.maximum(x, _broadcast(self.threshold, x))

    def extra_repr(self):
        return f"{len(self.threshold)}, learnable={self.threshold.requires_grad}"


class SharedScale(nn.Module):
    """One learnable scalar for a whole residual branch, x * s.

    Args:
        init (float): the start of s; 0 makes a residual block the identity.

    Attributes:
        scale (Parameter): s, without dimensions, so that it does not promote a half-precision x.

    Source: report, section 3, "Isometry in Residual Structure".
    """

    def __init__(self, init=0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(init)))

    def forward(self, x):
        """Any shape -> the same shape and dtype."""
        return x * self.scale


class _ShiftedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, threshold):
        y = torch.maximum(x, _broadcast(threshold, x))
        ctx.save_for_backward(y, threshold)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, threshold = ctx.saved_tensors
        passed = y > _broadcast(threshold, y)
        grad_x = grad_threshold = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.where(passed, grad, 0)
        if ctx.needs_input_grad[1]:
            dims = [dim for dim in range(grad.dim()) if dim != 1]
            # a sum over all pixels of a batch loses most digits of a half-precision format
            dtype = torch.promote_types(grad.dtype, torch.float32)
            grad_threshold = torch.where(passed, 0, grad).sum(dims, dtype=dtype).to(threshold.dtype)
        return grad_x, grad_threshold


def _broadcast(threshold, x):
    """(C,) -> (C, 1, ...) against (N, C, ...), in x's dtype, since torch.maximum would promote."""
    return threshold.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
