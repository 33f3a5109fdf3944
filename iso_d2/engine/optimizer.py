"""Detectron2's optimizer with the paper's settings for SReLU thresholds and residual scales."""

import math

import torch
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ..isometry import ScaledConv2d, ScaledConvTranspose2d, SharedScale, SReLU
from .choices import scale_lr_factor

# Adaptive clipping takes the norm of a unit as at least this, so that a unit that starts at 0 can leave it
SMALLEST_NORM = 1e-3


def build_optimizer(cfg, model):
    """SGD as Detectron2 builds it, with settings of their own for the parameters of isometric networks.

    SReLU thresholds get weight decay SOLVER.SRELU_WEIGHT_DECAY, metrics get none, and residual scales get the
    learning rate SOLVER.BASE_LR * SOLVER.SCALE_LR_FACTOR. They are found by the types of their modules, not
    by name. Layers with a true attribute `centred` keep the mean of each output's weights: the mean of the
    gradient is removed before any clipping, and what clipping and decay add is removed after the step.

    Args:
        cfg (CfgNode): a config with iso_d2's keys.
        model (nn.Module): the model.

    Returns:
        torch.optim.SGD: with gradient clipping if SOLVER.CLIP_GRADIENTS says so; adaptive clipping (ADAPTIVE)
        comes before that of CLIP_TYPE, see :class:`GradientClipper`. Both and the kept means are hooks of the
        optimizer, which a copy of it does not have.

    Raises:
        ValueError: an unknown SOLVER.CLIP_GRADIENTS.CLIP_TYPE; ADAPTIVE is not a finite number >= 0.

    Source: the paper's code (weight decay 0 for thresholds, learning rate x0.1 for scales).
    """
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    params += [
        {"params": _trained(model, SReLU, "threshold"), "weight_decay": cfg.SOLVER.SRELU_WEIGHT_DECAY},
        {"params": _trained(model, SharedScale, "scale"), "lr": cfg.SOLVER.BASE_LR * scale_lr_factor(cfg)},
        {"params": _trained(model, (ScaledConv2d, ScaledConvTranspose2d), "metric"), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(
        # the last entry for a parameter counts
        reduce_param_groups(params),
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )
    centred = [m.weight for m in model.modules() if getattr(m, "centred", False)]
    if centred:
        _keep_means(optimizer, centred)
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ADAPTIVE != 0:
        optimizer.register_step_pre_hook(AdaptiveClipper(model, clipping.ADAPTIVE))
    if clipping.ENABLED:
        clipper = GradientClipper(clipping.CLIP_TYPE, clipping.CLIP_VALUE, clipping.NORM_TYPE)
        optimizer.register_step_pre_hook(clipper)
    return optimizer


def clipped_sgd(params, clip, **settings):
    """torch.optim.SGD that clips the norm of each parameter's gradient to `clip`, for a LazyConfig."""
    optimizer = torch.optim.SGD(params, **settings)
    optimizer.register_step_pre_hook(GradientClipper("norm", clip))
    return optimizer


def _keep_means(optimizer, weights):
    means = []

    def before(*_):
        means[:] = _means(weights)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if gradients:
            torch._foreach_sub_(gradients, _means(gradients))

    def after(*_):
        torch._foreach_add_(weights, torch._foreach_sub(means, _means(weights)))

    optimizer.register_step_pre_hook(torch.no_grad()(before))
    optimizer.register_step_post_hook(torch.no_grad()(after))


def _means(weights):
    """list[Tensor]: the mean of each output's part of each weight, (M, 1, ...)."""
    return [weight.mean(dim=tuple(range(1, weight.dim())), keepdim=True) for weight in weights]


def _trained(model, types, name):
    """The parameters of one name in the modules of some types, frozen ones left out."""
    found = [getattr(module, name) for module in model.modules() if isinstance(module, types)]
    return [parameter for parameter in found if parameter is not None and parameter.requires_grad]


class GradientClipper:
    """Clip gradients before an optimizer's step, as Detectron2 does and in a few operations for all of them.

        "norm":        G <- G * min(1, c / (||G|| + 1e-6)) for the gradient G of each parameter by itself
        "value":       each entry of G to [-c, c]
        "full_model":  as "norm", with the norm of all gradients taken together

    Args:
        kind (str): one of these.
        limit (float): c.
        norm_type (float): p of the p-norm.

    Raises:
        ValueError: another kind.

    Source: detectron2.solver.build, which has the first two; the third is that of its DETR projects.
    """

    def __init__(self, kind, limit, norm_type=2.0):
        if kind not in ("norm", "value", "full_model"):
            raise ValueError(
                f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE must be norm, value or full_model, got {kind!r}"
            )
        self.kind, self.limit, self.norm_type = kind, float(limit), float(norm_type)

    @torch.no_grad()
    def __call__(self, optimizer, args=(), kwargs=None):
        """Change the gradients in place; the arguments are those of ``register_step_pre_hook``."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.kind == "value":
            clip_grad_value_(parameters, self.limit)
        elif self.kind == "full_model":
            clip_grad_norm_(parameters, self.limit, self.norm_type)
        elif parameters:
            gradients = [parameter.grad for parameter in parameters]
            norms = torch.stack(torch._foreach_norm(gradients, self.norm_type))
            torch._foreach_mul_(gradients, (self.limit / (norms + 1e-6)).clamp_(max=1).unbind())


class AdaptiveClipper:
    """Clip the gradient of each unit i of a weight to a share of the unit's norm, before an optimizer's step.

        G_i <- G_i * min(1, lambda * max(||W_i||, 1e-3) / ||G_i||)    in the Frobenius norm, eq. (3)

    A unit is a slice of a convolution weight along its first dimension: the weights of one output or, in a
    transposed convolution, of one input. Only convolutions are clipped. Vectors and numbers (thresholds,
    scales, biases) are not. Nor are linear layers, since NFNet excepts the last one and the heads of
    detectors have several.

    Args:
        model (nn.Module): its convolution weights that require a gradient are clipped.
        clipping (float): lambda.

    Raises:
        ValueError: lambda that is not a finite number above 0.

    Source: Brock, De, Smith, Simonyan, "High-Performance Large-Scale Image Recognition Without
    Normalization", ICML 2021, https://arxiv.org/abs/2102.06171, section 4.
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
        """Change the gradients in place; the arguments are those of ``register_step_pre_hook``."""
        weights = [weight for weight in self.weights if weight.grad is not None]
        if not weights:
            return
        gradients = [weight.grad for weight in weights]
        norms, allowed = _unit_norms(gradients), _unit_norms(weights).clamp_(min=SMALLEST_NORM)
        # a gradient of 0 stays 0; a NaN stays NaN, which the check of the losses finds
        factors = (self.clipping * allowed / norms.clamp_(min=1e-12)).clamp_(max=1)
        factors = factors.split([len(weight) for weight in weights])
        shaped = [f.view(-1, *[1] * (w.dim() - 1)) for f, w in zip(factors, weights, strict=True)]
        torch._foreach_mul_(gradients, shaped)


def _unit_norms(weights):
    """The norms of the units of all weights, one after the other, 1-dim."""
    norm = torch.linalg.vector_norm
    return torch.cat([norm(weight, dim=tuple(range(1, weight.dim()))) for weight in weights])
