"""When checkpoints are written, and how a training stops without losing anything."""

import logging
import math
import signal
import threading
import time
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.loader import SIGNALS
from ..isometry.model import unwrap
from .checkpoint import BEST, damage

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Write a checkpoint every so many steps, every so many minutes, at a signal and at the end.

    At SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 the step is finished and saved, and the process ends with the code
    128 + the signal's number. A second signal stops it at once. Several processes agree after each step, so
    the hook must be registered in all of them. During an evaluation a signal waits for its end.

    ``model_<step>.pth`` of `period` stay, or the newest `keep` of them. A checkpoint that was due to time or
    a signal goes when a newer one is there.

    Args:
        checkpointer (IsoCheckpointer): writes them.
        period (int): steps.
        minutes (float): at most so long after the checkpoint before; 0: only by steps.
        keep (int): how many of those by steps to keep; 0: all.

    Raises:
        ValueError: a period below 1, minutes or `keep` below 0.
        SystemExit: in :meth:`after_step`, after a signal.
    """

    def __init__(self, checkpointer, period, minutes=0, keep=0):
        if period < 1 or minutes < 0 or keep < 0:
            raise ValueError(
                "SOLVER.CHECKPOINT_PERIOD must be at least 1, CHECKPOINT_MINUTES and CHECKPOINTS_KEPT at "
                f"least 0, got {period}, {minutes} and {keep}"
            )
        self.checkpointer = checkpointer
        self.period, self.minutes, self.keep = period, minutes, keep
        self._signal, self._handlers = 0, {}
        self._by_period, self._passing = [], None

    def before_train(self):
        self._saved_at = time.monotonic()
        if comm.is_main_process():
            # of a process that was killed while it saved
            for unfinished in Path(self.checkpointer.save_dir).glob(".*.unfinished"):
                unfinished.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            # not what a user, or nohup, has set
            usual = (signal.SIG_DFL, signal.default_int_handler)
            free = [number for number in SIGNALS if signal.getsignal(number) in usual]
            self._handlers = {number: signal.signal(number, self._ask_to_stop) for number in free}

    def after_train(self):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def after_step(self):
        step = self.trainer.iter
        overdue = self.minutes > 0 and time.monotonic() - self._saved_at >= 60 * self.minutes
        asked = comm.all_gather((self._signal, overdue))
        stop, overdue = max(number for number, _ in asked), asked[0][1]
        at_end, by_period = step + 1 >= self.trainer.max_iter, (step + 1) % self.period == 0
        if stop or overdue or by_period or at_end:
            self._save(step, by_period, at_end)
        if stop and not at_end:
            logger.info("Stopped by %s after step %d; --resume goes on", signal.Signals(stop).name, step)
            comm.synchronize()  # else the end of another process could stop the one that saves
            raise SystemExit(128 + stop)

    def save_last(self, step):
        """Write ``model_final.pth`` now."""
        self._save(step, by_period=False, at_end=True)

    def _save(self, step, by_period, at_end):
        for hook in self.trainer._hooks:
            if hasattr(hook, "gather_state"):
                hook.gather_state()
        name = f"model_{step:07d}"
        old, self._passing = [self._passing], None
        if by_period:
            self._by_period.append(name)
            if self.keep:
                old += self._by_period[: -self.keep]
                self._by_period = self._by_period[-self.keep :]
        elif not at_end:
            self._passing = name
        # this one first: a training that is killed in between has no step left that would write it
        if at_end:
            self.checkpointer.save("model_final", iteration=step)
        if by_period or not at_end:
            self.checkpointer.save(name, iteration=step)
        self._saved_at = time.monotonic()
        if comm.is_main_process():
            for name in filter(None, old):
                Path(self.checkpointer.save_dir, f"{name}.pth").unlink(missing_ok=True)

    def state_dict(self):
        """Which checkpoints are to go when newer ones are there."""
        return {"by_period": list(self._by_period), "passing": self._passing}

    def load_state_dict(self, state):
        self._by_period, self._passing = list(state["by_period"]), state["passing"]

    def _ask_to_stop(self, number, _):
        self._signal = number
        logger.warning("%s: stopping after this step; once more stops at once", signal.Signals(number).name)
        self.after_train()


class TrainingStopped(BaseException):
    """A training that is at its end before its last step. No Exception, which Detectron2 logs as a fault."""


class LossNormalizerHook(HookBase):
    """Keeps the running normalizer of the loss of RetinaNet and FCOS, which is no buffer, in checkpoints."""

    NAME = "loss_normalizer"

    def __init__(self):
        self._of_processes = []

    def before_train(self):
        rank = comm.get_rank()
        if rank < len(self._of_processes) and self._of_processes[rank] is not None:
            setattr(unwrap(self.trainer.model), self.NAME, self._of_processes[rank])

    def gather_state(self):
        """Collect it from all processes, for the next `state_dict`."""
        self._of_processes = comm.all_gather(getattr(unwrap(self.trainer.model), self.NAME, None))

    def state_dict(self):
        return {"processes": self._of_processes}

    def load_state_dict(self, state):
        self._of_processes = state["processes"]


class BestCheckpointHook(HookBase):
    """Keep the checkpoint with the best value of a metric as ``model_best.pth``; after the evaluation's hook.

    A training that goes on compares with the value in the file.

    Args:
        checkpointer (IsoCheckpointer): writes it.
        metric (str): as in metrics.json, such as "bbox/AP".
        mode (str): "max" or "min".

    Raises:
        ValueError: another mode.
    """

    def __init__(self, checkpointer, metric, mode="max"):
        if mode not in ("max", "min"):
            raise ValueError(f"TEST.BEST must be [metric, 'max' or 'min'], got mode {mode!r}")
        self.checkpointer, self.metric = checkpointer, metric
        self._sign = 1 if mode == "max" else -1
        self._best = None

    def before_train(self):
        file = Path(self.checkpointer.save_dir, f"{BEST}.pth")
        if self.trainer.start_iter > 0 and file.is_file():
            if fault := damage(file):
                logger.warning("%s does not count, it is damaged: %s", file, fault)
                return
            self._best = torch.load(file, map_location="cpu", mmap=True, weights_only=True).get("metric")

    def after_step(self):
        self._compare()

    def after_train(self):
        # the last evaluation comes after the last step
        if self.trainer.iter >= self.trainer.max_iter:
            self._compare()

    def _compare(self):
        value, step = self.trainer.storage.latest().get(self.metric, (math.nan, None))
        if step != self.trainer.iter or not math.isfinite(value):
            return
        if self._best is None or self._sign * (value - self._best) > 0:
            self._best = float(value)
            step = min(step, self.trainer.max_iter - 1)
            self.checkpointer.save(BEST, iteration=step, metric=self._best)


class EarlyStoppingHook(HookBase):
    """End the training when so many evaluations in a row were not better than the best one before them.

    It then saves the present weights as ``model_final.pth``, like a training that has come to its last step;
    ``model_best.pth`` has the best. A value that is not finite is not better. Register the hook in all
    processes, after the evaluation's.

    Args:
        checkpoints (CheckpointHook): saves.
        metric (str), mode (str): as of :class:`BestCheckpointHook`.
        period (int): steps between two evaluations.
        patience (int): how many evaluations.

    Raises:
        TrainingStopped: in :meth:`after_step`.
    """

    def __init__(self, checkpoints, metric, mode, period, patience):
        self.checkpoints, self.metric, self.period, self.patience = checkpoints, metric, period, patience
        self._sign = 1 if mode == "max" else -1
        self._best, self._since, self._step = None, 0, -1

    def after_step(self):
        step = self.trainer.iter
        if (step + 1) % self.period or step + 1 >= self.trainer.max_iter:
            return
        # the main process alone has results
        value = comm.all_gather(self.trainer.storage.latest().get(self.metric, (math.nan,))[0])[0]
        if step > self._step:
            better = self._best is None or self._sign * (value - self._best) > 0
            self._step, self._since = step, self._since + 1
            if math.isfinite(value) and better:
                self._best, self._since = float(value), 0
        if self._since >= self.patience:
            self.checkpoints.save_last(step)
            raise TrainingStopped(
                f"Stopped early after step {step}: {self._since} evaluations (TEST.PATIENCE {self.patience}) "
                f"without a better {self.metric} than {self._best}"
            )

    def state_dict(self):
        return {"best": self._best, "since": self._since, "step": self._step}

    def load_state_dict(self, state):
        self._best, self._since, self._step = state["best"], state["since"], state["step"]
