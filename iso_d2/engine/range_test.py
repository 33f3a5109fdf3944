"""A learning-rate range test: short training steps at rising rates, and what the losses say."""

import math
import tempfile

import torch
from detectron2.engine import hooks
from matplotlib.figure import Figure

from ..files import as_csv, replacing, write_atomically
from .checkpoint_hooks import TrainingStopped
from .choices import epochs_to_iterations, penalty_coefficient
from .hooks import DeltaInitHook, OrthogonalityLossHook, WhiteningHook
from .trainer import Trainer

# The share of the past in the smoothed loss
SMOOTHING = 0.9
# The test is over when the smoothed loss is so many times its smallest value
DIVERGED = 4.0
# The suggestion is the rate of the smallest smoothed loss by this
BELOW_THE_BEST = 10.0


class _RangeTrainer(Trainer):
    """A trainer whose rate rises by the same factor at each step, and which writes and saves nothing."""

    def __init__(self, cfg, lowest, highest):
        self.lowest, self.factor = lowest, (highest / lowest) ** (1 / (cfg.SOLVER.MAX_ITER - 1))
        self.losses = []
        super().__init__(cfg)

    def build_lr_scheduler(self, cfg, optimizer):
        # scales and others with a rate of their own keep their ratio
        start = self.lowest / cfg.SOLVER.BASE_LR
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: start * self.factor**step)

    def build_hooks(self):
        changing = DeltaInitHook, OrthogonalityLossHook, WhiteningHook, hooks.LRScheduler
        return [hook for hook in super().build_hooks() if isinstance(hook, changing)]

    def run_step(self):
        try:
            super().run_step()
        except FloatingPointError as error:
            raise TrainingStopped("The range test is over, the loss is not finite any more") from error
        latest = {name: value for name, (value, step) in self.storage.latest().items() if step == self.iter}
        # the penalty does not belong to what a rate is good for, and not every step has it
        self.losses.append(latest["total_loss"] - latest.get("loss_ortho", 0.0))
        smooth = smoothed(self.losses)
        if smooth[-1] > DIVERGED * min(smooth):
            raise TrainingStopped(f"The range test is over, the loss has risen to {smooth[-1]:.4g}")


def range_test(cfg, lowest=1e-5, highest=10.0, steps=100):
    """Take a step at each of some rates, from the lowest to the highest, in equal ratios.

    The model starts as its training would, MODEL.WEIGHTS included, and is thrown away; data, batches, random
    numbers, clipping and penalty are those of the config. Nothing is written to OUTPUT_DIR.

    Args:
        cfg (CfgNode): of the training, whose SOLVER.BASE_LR and schedule do not count, but for the
            coefficient of a penalty that is "auto".
        lowest, highest (float): rates.
        steps (int): how many.

    Returns:
        tuple[list[float], list[float]]: the rates and the losses of the batches before each step, without the
        penalty; up to where the loss is not finite any more or, smoothed, above four times its smallest.

    Raises:
        ValueError: rates that are not 0 < lowest < highest, fewer than 10 steps, a rate of the config that
            is 0, or a loss that is not finite at the first of them.
    """
    if not (0 < lowest < highest < math.inf and steps >= 10 and cfg.SOLVER.BASE_LR > 0):
        raise ValueError(
            "a range test needs rates 0 < lowest < highest, at least 10 steps and a SOLVER.BASE_LR above 0, "
            f"got {lowest}, {highest}, {steps} and {cfg.SOLVER.BASE_LR}"
        )
    with tempfile.TemporaryDirectory() as folder:
        cfg = _without_results(cfg, folder, steps)
        trainer = _RangeTrainer(cfg, lowest, highest)
        trainer.resume_or_load(resume=False)
        trainer.train()
    losses = trainer.losses
    if not losses:
        raise ValueError(f"the loss is not finite, or above SOLVER.MAX_LOSS, at the lowest rate, {lowest}")
    return [lowest * trainer.factor**step for step in range(len(losses))], losses


def smoothed(losses):
    """list[float]: the exponential moving average of losses, without the bias towards 0 at its start.

    m_t = sum_{i <= t} beta^(t-i) l_i / sum_{i <= t} beta^(t-i)    with beta = 0.9
    """
    found, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
        found.append(total / weight)
    return found


def suggested_rate(rates, losses):
    """float: a tenth of the rate at which the smoothed loss is smallest.

    That rate is already too high: there the loss begins to rise. Source: Smith, "Cyclical Learning Rates for
    Training Neural Networks", WACV 2017, https://arxiv.org/abs/1506.01186, section 3.3, has the test; the
    tenth is a rule of thumb.
    """
    smooth = smoothed(losses)
    return rates[smooth.index(min(smooth))] / BELOW_THE_BEST


def write_range_test(rates, losses, folder):
    """Write ``range_test.csv`` (rate, loss, smoothed loss) and ``range_test.png`` into a folder (Path)."""
    smooth, rate = smoothed(losses), suggested_rate(rates, losses)
    columns = "learning_rate", "loss", "smoothed_loss"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(rates, losses, smooth, strict=True)]
    write_atomically(folder / "range_test.csv", as_csv(rows))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="tab:grey", alpha=0.5, linewidth=1, label="loss of the batch")
    axes.plot(rates, smooth, color="tab:blue", label="smoothed")
    axes.axvline(rate, color="tab:red", linestyle=":", label=f"suggestion: {rate:.2g}")
    axes.set_xscale("log")
    margin = max(smooth[0] - min(smooth), 0.1 * smooth[0])
    axes.set_ylim(min(smooth) - margin, smooth[0] + margin)  # not up to where it diverged
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss without the penalty")
    axes.legend()
    with replacing(folder / "range_test.png") as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")


def _without_results(cfg, folder, steps):
    coefficient = penalty_coefficient(epochs_to_iterations(cfg))
    cfg = cfg.clone()
    cfg.defrost()
    cfg.ISO.ORTHO.COEFF, cfg.ISO.ORTHO.LOG_PERIOD = coefficient, 0
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = folder, ()
    cfg.TEST.BEST, cfg.TEST.PATIENCE, cfg.TEST.EXPECTED_RESULTS = [], 0, []
    cfg.ISO.WRITERS, cfg.SOLVER.EMA = [], 0.0
    solver = cfg.SOLVER
    solver.EPOCHS, solver.EPOCH_STEPS, solver.WARMUP_EPOCHS, cfg.TEST.EVAL_EPOCHS = 0, (), 0, 0
    solver.MAX_ITER = steps
    cfg.freeze()
    return cfg
