"""What a config leaves to be chosen: by the signal of its network, and by its schedule."""

import math

import torch
from detectron2.solver import build_lr_scheduler

PAPER_COEFF = 1e-4
# By how many time constants an "auto" penalty alone brings a singular value back to 1 in a training, at least
PULL = 4.0
# An "auto" penalty's coefficient by the rate of a step with its momentum, at least
HOLD = 0.35
# Of a schedule, at most so many rates are looked at
_POINTS = 1000


def network_signal(cfg):
    """str: "paper" or "scaled", of the network that the config's meta-architecture has."""
    is_unet = cfg.MODEL.META_ARCHITECTURE == "UNetSegmentor"
    return cfg.MODEL.UNET.SIGNAL if is_unet else cfg.MODEL.ISONET.SIGNAL


def scale_lr_factor(cfg):
    """float: SOLVER.SCALE_LR_FACTOR, or what the signal asks for where it is None."""
    factor = cfg.SOLVER.SCALE_LR_FACTOR
    if isinstance(factor, str):
        raise ValueError(f"SOLVER.SCALE_LR_FACTOR must be a number or None, got {factor!r}")
    return factor if factor is not None else (1.0 if network_signal(cfg) == "scaled" else 0.1)


def penalty_mode(cfg):
    """str: ISO.ORTHO.MODE, or what the signal asks for where it is "auto"."""
    mode = cfg.ISO.ORTHO.MODE
    if mode != "auto":
        return mode
    if network_signal(cfg) == "scaled":
        return "spectral"
    # the paper's formula is not 0 where the strided up-convolutions of a UNet are isometries
    return "exact" if cfg.MODEL.META_ARCHITECTURE == "UNetSegmentor" else "paper"


def penalty_coefficient(cfg):
    """ISO.ORTHO.COEFF as a number, gamma.

    None is the paper's 1e-4 with SIGNAL "paper" and "auto" with "scaled". "auto", for BASE_LR eta and
    MOMENTUM mu, is the larger one of

        PULL * (1 - mu) / (4 * sum of the learning rates of all steps),    HOLD * eta / (1 - mu),

    but at least 1e-4. Near 1 the penalty's gradient in a singular value sigma, 2 gamma (sigma^2 - 1) sigma,
    is 4 gamma times sigma - 1, and a step takes 4 gamma eta / (1 - mu) of what is left. So with the first a
    training without another gradient divides sigma - 1 by exp(PULL), however short it is. With the second a
    singular value that the noise of the task's gradient, of variance s^2 a step, pushes to and fro keeps a
    variance of (eta s / (1 - mu))^2 / (2 * 4 gamma eta / (1 - mu)) = s^2 / (8 HOLD), whatever the rate is.

    Args:
        cfg (CfgNode): its schedule in iterations, SOLVER.MAX_ITER.

    Returns:
        float

    Raises:
        ValueError: neither a number nor "auto"; "auto" for a schedule whose rates are all 0.
    """
    coeff = cfg.ISO.ORTHO.COEFF
    if coeff is None:
        coeff = "auto" if network_signal(cfg) == "scaled" else PAPER_COEFF
    if coeff != "auto":
        if isinstance(coeff, bool) or not isinstance(coeff, (int, float)):
            raise ValueError(f"ISO.ORTHO.COEFF must be a number, 'auto' or None, got {coeff!r}")
        return coeff
    total = sum_of_rates(cfg)
    if not total > 0 or not cfg.SOLVER.MOMENTUM < 1:
        raise ValueError(
            "ISO.ORTHO.COEFF 'auto' needs a schedule with learning rates above 0 and a momentum below 1, got "
            f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR}, MAX_ITER {cfg.SOLVER.MAX_ITER}, "
            f"MOMENTUM {cfg.SOLVER.MOMENTUM}"
        )
    left = 1 - cfg.SOLVER.MOMENTUM
    return max(PAPER_COEFF, PULL * left / (4 * total), HOLD * cfg.SOLVER.BASE_LR / left)


def sum_of_rates(cfg):
    """float: the learning rates of all steps of a schedule, added up; to a thousandth where it is long."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    scheduler = build_lr_scheduler(cfg, torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR))
    steps = range(0, cfg.SOLVER.MAX_ITER, math.ceil(cfg.SOLVER.MAX_ITER / _POINTS) or 1)
    rates = []
    for scheduler.last_epoch in steps:
        rates += scheduler.get_lr()
    return sum(rates) / len(rates) * cfg.SOLVER.MAX_ITER if rates else 0.0
