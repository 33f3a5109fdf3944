"""Which hooks and writers a training has, and in what order."""

import contextlib
import weakref

from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from .averaging import AverageHook
from .checkpoint_hooks import BestCheckpointHook, CheckpointHook, EarlyStoppingHook, LossNormalizerHook
from .choices import penalty_coefficient, penalty_mode
from .compilation import CompileHook
from .hooks import DeltaInitHook, IsometryHook, OrthogonalityLossHook, SignalHook, WhiteningHook

# They act on a step after the checkpoint of it
AFTER_CHECKPOINT = (EvalHook, BestCheckpointHook, EarlyStoppingHook)


def build_hooks(trainer, usual):
    """The hooks that a trainer's config asks for, then Detectron2's, of which the writer comes last.

    The average of the weights comes before the checkpoint, which holds it; the evaluation after it, so that
    one that fails can be looked into; the best checkpoint and early stopping after the evaluation.

    Args:
        trainer (iso_d2.engine.Trainer): with model, checkpointer and config.
        usual (list): Detectron2's hooks, None among them.

    Returns:
        list[HookBase]
    """
    cfg, checkpointer = trainer.cfg, trainer.checkpointer
    iso, solver, hooks, average = cfg.ISO, cfg.SOLVER, [], None
    if iso.DELTA_INIT.ENABLED:
        hooks.append(DeltaInitHook(iso.DELTA_INIT.INCLUDE))
    coeff = penalty_coefficient(cfg)
    if coeff != 0:
        keys = ("INCLUDE", "EXCLUDE", "PERIOD", "LOG_PERIOD", "FRACTION", "BOUND", "PRECISION")
        options = {key.lower(): iso.ORTHO[key] for key in keys}
        hooks.append(OrthogonalityLossHook(coeff, penalty_mode(cfg), **options))
    if iso.ANALYSIS.PERIOD > 0:
        hooks.append(IsometryHook(iso.ANALYSIS.PERIOD))
    if cfg.MODEL.COMPILE:
        hooks.append(CompileHook())
    hooks += [WhiteningHook(), SignalHook(), LossNormalizerHook()]
    if solver.EMA != 0:
        average = checkpointer.average = AverageHook(solver.EMA)
    for hook in filter(None, usual):
        if isinstance(hook, EvalHook):
            keys = solver.CHECKPOINT_PERIOD, solver.CHECKPOINT_MINUTES, solver.CHECKPOINTS_KEPT
            checkpoints = CheckpointHook(checkpointer, *keys)
            evaluation = EvalHook(cfg.TEST.EVAL_PERIOD, _evaluation(weakref.proxy(trainer), average))
            hooks += [*([average] if average else []), checkpoints, evaluation]
            if cfg.TEST.BEST:
                hooks.append(BestCheckpointHook(checkpointer, *cfg.TEST.BEST))
            if cfg.TEST.PATIENCE:
                stopping = *cfg.TEST.BEST, cfg.TEST.EVAL_PERIOD, cfg.TEST.PATIENCE
                hooks.append(EarlyStoppingHook(checkpoints, *stopping))
        elif not isinstance(hook, PeriodicCheckpointer):
            hooks.append(hook)
    return hooks


def _evaluation(trainer, average):
    """The function of EvalHook: that of the averaged weights, if there are any."""

    def evaluate():
        with average.in_place() if average else contextlib.nullcontext():
            results = trainer.test(trainer.cfg, trainer.model)
        trainer._last_eval_results = results
        found, best = flatten_results_dict(results), trainer.cfg.TEST.BEST
        if best and comm.is_main_process() and best[0] not in found:
            raise ValueError(
                f"TEST.BEST names {best[0]!r}, which the evaluation does not give. "
                f"It gives {', '.join(found) or 'nothing'}"
            )
        return results

    return evaluate
