"""Detectron2's optimizer with the paper's settings for SReLU thresholds and residual scales."""

import torch
from detectron2.solver.build import (
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)

from ..isometry import ScaledConv2d, ScaledConvTranspose2d, SharedScale, SReLU, centre_
from .choices import scale_lr_factor
from .clipping import AdaptiveClipper


def build_optimizer(cfg, model):
    """SGD as Detectron2 builds it, but for the parameters that only isometric networks have.

    SReLU thresholds get weight decay SOLVER.SRELU_WEIGHT_DECAY, and metrics none; residual scales get
    learning rate SOLVER.BASE_LR * SOLVER.SCALE_LR_FACTOR. They are known by their modules' types, not by
    name. Layers whose attribute `centred` is true keep the means of their outputs' weights: their gradients
    lose theirs before any clipping, and what clipping and decay add comes off after the step.

    Args:
        cfg (CfgNode): a config with iso_d2's keys.
        model (nn.Module): the model.

    Returns:
        torch.optim.SGD: with gradient clipping where SOLVER.CLIP_GRADIENTS asks for it; adaptive clipping
        (ADAPTIVE) comes before the one of CLIP_TYPE.

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
        {"params": _trained(model, SReLU), "weight_decay": cfg.SOLVER.SRELU_WEIGHT_DECAY},
        {"params": _trained(model, SharedScale), "lr": cfg.SOLVER.BASE_LR * scale_lr_factor(cfg)},
        {"params": _metrics(model), "weight_decay": 0.0},
    ]
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
        # Of the entries for one parameter the later wins.
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
    if cfg.SOLVER.CLIP_GRADIENTS.ADAPTIVE != 0:
        optimizer.register_step_pre_hook(AdaptiveClipper(model, cfg.SOLVER.CLIP_GRADIENTS.ADAPTIVE))
    return optimizer


def _keep_means(optimizer, weights):
    means = []

    def before(*_):
        means[:] = [w.detach().flatten(1).mean(1).view(-1, *[1] * (w.dim() - 1)) for w in weights]
        for weight in weights:
            if weight.grad is not None:
                centre_(weight.grad)

    @torch.no_grad()
    def after(*_):
        for weight, mean in zip(weights, means, strict=True):
            centre_(weight).add_(mean)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _metrics(model):
    convs = [m for m in model.modules() if isinstance(m, (ScaledConv2d, ScaledConvTranspose2d))]
    return [c.metric for c in convs if c.metric is not None and c.metric.requires_grad]


def _trained(model, module_type):
    return [
        parameter
        for module in model.modules()
        if isinstance(module, module_type)
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad
    ]
