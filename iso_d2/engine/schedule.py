"""Schedules in passes over the training data, which Detectron2 counts in iterations."""

import logging

from detectron2.data import DatasetCatalog

logger = logging.getLogger(__name__)


def epochs_to_iterations(cfg):
    """The config with its schedule in iterations, when SOLVER.EPOCHS gives it in epochs.

        iterations = round(epochs * images of DATASETS.TRAIN / SOLVER.IMS_PER_BATCH)

    EPOCHS sets MAX_ITER, EPOCH_STEPS STEPS, WARMUP_EPOCHS WARMUP_ITERS, and TEST.EVAL_EPOCHS
    TEST.EVAL_PERIOD; what comes out is logged.

    Args:
        cfg (CfgNode): a config with iso_d2's keys.

    Returns:
        CfgNode: `cfg` itself where SOLVER.EPOCHS is 0, else a changed copy, frozen if `cfg` is.

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
