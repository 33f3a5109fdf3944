"""Settings that a config leaves open: some depend on the network's signal, some on the training data."""

import logging
import math

import torch
from detectron2.data import DatasetCatalog
from detectron2.solver import build_lr_scheduler

PAPER_COEFF = 1e-4
# Least number of time constants by which an "auto" penalty alone pulls singular values to 1 in a training
PULL = 4.0
# Least ratio of an "auto" penalty's coefficient to the learning rate with momentum, BASE_LR / (1 - MOMENTUM)
HOLD = 0.35
# About the largest number of steps of a schedule whose learning rates are read
_POINTS = 1000

logger = logging.getLogger(__name__)


def network_signal(cfg):
    """str: "paper" or "scaled", for the network of the config's meta-architecture."""
    is_unet = cfg.MODEL.META_ARCHITECTURE == "UNetSegmentor"
    return cfg.MODEL.UNET.SIGNAL if is_unet else cfg.MODEL.ISONET.SIGNAL


def scale_lr_factor(cfg):
    """float: SOLVER.SCALE_LR_FACTOR; if None, as the signal needs it."""
    factor = cfg.SOLVER.SCALE_LR_FACTOR
    if isinstance(factor, str):
        raise ValueError(f"SOLVER.SCALE_LR_FACTOR must be a number or None, got {factor!r}")
    return factor if factor is not None else (1.0 if network_signal(cfg) == "scaled" else 0.1)


def penalty_mode(cfg):
    """str: ISO.ORTHO.MODE; if "auto", as the signal needs it."""
    mode = cfg.ISO.ORTHO.MODE
    if mode != "auto":
        return mode
    if network_signal(cfg) == "scaled":
        return "spectral"
    # at a UNet's strided up-convolutions the paper's formula is not 0 for isometries
    return "exact" if cfg.MODEL.META_ARCHITECTURE == "UNetSegmentor" else "paper"


def penalty_coefficient(cfg):
    """ISO.ORTHO.COEFF as a float, gamma.

    None is the paper's 1e-4 with SIGNAL "paper" and "auto" with "scaled". With BASE_LR eta and MOMENTUM mu,
    "auto" is the larger of

        PULL * (1 - mu) / (4 * sum of the learning rates of all steps),    HOLD * eta / (1 - mu),

    but at least 1e-4. The penalty's gradient in a singular value sigma, 2 gamma (sigma^2 - 1) sigma, is near
    1 about 4 gamma (sigma - 1), so each step takes 4 gamma eta / (1 - mu) of sigma - 1. With the first, the
    penalty alone divides sigma - 1 by exp(PULL) in a training of any length. With the second, gradient noise
    of variance s^2 per step gives sigma the variance (eta s / (1 - mu))^2 / (2 * 4 gamma eta / (1 - mu)) =
    s^2 / (8 HOLD) at any learning rate.

    Args:
        cfg (CfgNode): with its schedule in iterations, SOLVER.MAX_ITER.

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
    """float: the sum of the learning rates of all steps of a schedule, to a thousandth if it is long."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    scheduler = build_lr_scheduler(cfg, torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR))
    steps = range(0, cfg.SOLVER.MAX_ITER, math.ceil(cfg.SOLVER.MAX_ITER / _POINTS) or 1)
    rates = []
    for scheduler.last_epoch in steps:
        rates += scheduler.get_lr()
    return sum(rates) / len(rates) * cfg.SOLVER.MAX_ITER if rates else 0.0


def epochs_to_iterations(cfg):
    """The config with its schedule in iterations, when SOLVER.EPOCHS gives it in epochs.

        iterations = round(epochs * images of DATASETS.TRAIN / SOLVER.IMS_PER_BATCH)

    EPOCHS sets MAX_ITER, EPOCH_STEPS sets STEPS, WARMUP_EPOCHS sets WARMUP_ITERS, and TEST.EVAL_EPOCHS sets
    TEST.EVAL_PERIOD. The results are logged.

    Returns:
        CfgNode: `cfg` itself if SOLVER.EPOCHS is 0, else a changed copy, frozen if `cfg` is.

    Raises:
        ValueError: SOLVER.EPOCHS is not above 0, but another of these keys is given.
    """
    epochs = {
        "SOLVER.EPOCHS": cfg.SOLVER.EPOCHS,
        "SOLVER.EPOCH_STEPS": list(cfg.SOLVER.EPOCH_STEPS),
        "SOLVER.WARMUP_EPOCHS": cfg.SOLVER.WARMUP_EPOCHS,
        "TEST.EVAL_EPOCHS": cfg.TEST.EVAL_EPOCHS,
    }
    if cfg.SOLVER.EPOCHS <= 0:
        given = [f"{key} {value}" for key, value in epochs.items() if value]
        if given:
            raise ValueError(f"A schedule in epochs needs SOLVER.EPOCHS above 0, got {', '.join(given)}")
        return cfg
    images = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TRAIN)

    def iterations(number):
        return round(number * images / cfg.SOLVER.IMS_PER_BATCH)

    changed = cfg.clone()
    changed.defrost()
    changed.SOLVER.MAX_ITER = iterations(cfg.SOLVER.EPOCHS)
    changed.SOLVER.STEPS = tuple(iterations(number) for number in cfg.SOLVER.EPOCH_STEPS)
    changed.SOLVER.WARMUP_ITERS = iterations(cfg.SOLVER.WARMUP_EPOCHS)
    changed.TEST.EVAL_PERIOD = iterations(cfg.TEST.EVAL_EPOCHS)
    if cfg.is_frozen():
        changed.freeze()
    logger.info(
        "%s at %d images an epoch and %d a batch: SOLVER.MAX_ITER %d, STEPS %s, WARMUP_ITERS %d, "
        "TEST.EVAL_PERIOD %d",
        *(", ".join(f"{key} {value}" for key, value in epochs.items()), images, cfg.SOLVER.IMS_PER_BATCH),
        *(changed.SOLVER.MAX_ITER, changed.SOLVER.STEPS, changed.SOLVER.WARMUP_ITERS),
        changed.TEST.EVAL_PERIOD,
    )
    return changed


def with_seed(cfg, seed):
    """CfgNode: the config with another SEED, frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg
