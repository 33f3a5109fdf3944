"""Adaptive gradient clipping, which bounds each unit's step by the unit's own size.

Brock, De, Smith, Simonyan: High-Performance Large-Scale Image Recognition Without Normalization, ICML 2021,
https://arxiv.org/abs/2102.06171, section 4.
"""

import math

import torch

# What the norm of a unit counts at least: a unit that starts at 0 can leave it
SMALLEST_NORM = 1e-3


class AdaptiveClipper:
    """Clip the gradient of each unit i of a weight to a share of the unit's norm, before an optimizer's step.

        G_i <- G_i * min(1, lambda * max(||W_i||, 1e-3) / ||G_i||)    in the Frobenius norm, eq. (3)

    A unit is what one output sees, a row of a convolution weight; of a transposed convolution it is
    likewise a slice of the first dimension, the inputs. Only convolutions are clipped: vectors and numbers
    (thresholds, scales, biases) are not, and linear layers are not, since NFNet spares the last one and the
    heads of detectors have several.

    Args:
        model (nn.Module): its convolution weights that require a gradient are clipped.
        clipping (float): lambda.

    Raises:
        ValueError: lambda that is not a finite number above 0.
    """

    def __init__(self, model, clipping):
        if not (math.isfinite(clipping) and clipping > 0):
            raise ValueError(
                f"SOLVER.CLIP_GRADIENTS.ADAPTIVE must be a finite number above 0, got {clipping}"
            )
        self.clipping = clipping
        self.weights = [p for p in model.parameters() if p.dim() > 2 and p.requires_grad]

    @torch.no_grad()
    def __call__(self, optimizer=None, args=(), kwargs=None):
        """Change the gradients in place; of the form that ``register_step_pre_hook`` takes."""
        for weight in self.weights:
            if weight.grad is None:
                continue
            dims = tuple(range(1, weight.dim()))
            allowed = torch.linalg.vector_norm(weight, dim=dims, keepdim=True).clamp_(min=SMALLEST_NORM)
            norm = torch.linalg.vector_norm(weight.grad, dim=dims, keepdim=True)
            # a gradient of 0 stays as it is; a NaN stays one, for the check of the losses to find
            weight.grad.mul_((self.clipping * allowed / norm.clamp(min=1e-12)).clamp_(max=1))
