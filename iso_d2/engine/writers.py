"""What metrics.json gets, also for Weights & Biases and MLflow: Detectron2's event writers, one for each."""

import importlib
import logging
import re
import sys
from collections import defaultdict
from pathlib import Path

import yaml
from detectron2.utils.events import EventWriter, get_event_storage

from ..files import write_atomically

logger = logging.getLogger(__name__)


class RunWriter(EventWriter):
    """What the writers have in common: which run it is, and which values it has not got yet.

    The run's id is kept in OUTPUT_DIR, in ``<package>_run``, so that a training that goes on goes on in the
    same run. When the tracker fails in a write, a warning says so, the training goes on, and the next write
    tries again.

    Args:
        cfg (CfgNode): OUTPUT_DIR, and what the run shows as the config. Project, server and the like are up
            to the package: its environment variables and its own settings.

    Raises:
        ImportError: the package is missing.
    """

    package = None

    def __init__(self, cfg):
        try:
            self._module = importlib.import_module(self.package)
        except ImportError as error:
            raise ImportError(
                f"ISO.WRITERS {self.package!r} needs one more package ({error}): pip install "
                f"iso_d2[{self.package}]"
            ) from error
        self._cfg, self._run, self._last_write, self._known_error = cfg, None, -1, None

    def start(self, goes_on=False):
        """Begin a run or, if the training goes on from a checkpoint, go on with its run."""
        self._known_error = sys.exc_info()[1]  # of a training that someone's `except` begins
        file = Path(self._cfg.OUTPUT_DIR, f"{self.package}_run")
        known = file.read_text(encoding="utf-8") if goes_on and file.is_file() else None
        self._run, run_id = self._start(known)
        write_atomically(file, run_id)

    def write(self):
        if self._run is None:
            return
        by_step = defaultdict(dict)
        # as Detectron2's writers do: the median of 20 steps, where there is noise
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(20).items():
            if step > self._last_write:
                by_step[step][name] = value
        try:
            for step in sorted(by_step):
                self._log(by_step[step], step)
                self._last_write = step
        except Exception as error:
            logger.warning("%s got nothing, the training goes on: %s", self.package, error)

    def close(self):
        if self._run is not None:
            # on the way out of an error, too; what ends early stopping or comes of a signal is no Exception
            error = sys.exc_info()[1]
            self._end(failed=isinstance(error, Exception) and error is not self._known_error)


class WandbWriter(RunWriter):
    """Metrics for Weights & Biases.

    The axis of its charts is ``iteration``: its own step cannot go back to that of a checkpoint.

    Source: W&B's Python reference, ``wandb.init``, ``Run.define_metric``, ``Run.log``, ``Run.finish``.
    """

    package = "wandb"

    def _start(self, known):
        run = self._module.init(
            dir=self._cfg.OUTPUT_DIR, id=known, resume="allow", config=yaml.safe_load(self._cfg.dump())
        )
        run.define_metric("*", step_metric="iteration")
        return run, run.id

    def _log(self, values, step):
        self._run.log({"iteration": step, **values})

    def _end(self, failed):
        self._run.finish(exit_code=int(failed))


class MLflowWriter(RunWriter):
    """Metrics for MLflow, and the config as an artifact. Characters that it refuses in names become ``_``.

    Source: MLflow's Python reference, ``start_run``, ``log_text``, ``log_metrics``, ``end_run``.
    """

    package = "mlflow"

    def _start(self, known):
        run = self._module.start_run(run_id=known)
        self._module.log_text(self._cfg.dump(), "config.yaml")
        return run, run.info.run_id

    def _log(self, values, step):
        values = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}
        self._module.log_metrics(values, step=step)

    def _end(self, failed):
        self._module.end_run("FAILED" if failed else "FINISHED")


WRITERS = {writer.package: writer for writer in (WandbWriter, MLflowWriter)}


def build_writers(cfg):
    """list[RunWriter]: those that ISO.WRITERS names.

    Raises:
        ValueError: there is no such writer.
        ImportError: its package is missing.
    """
    unknown = [name for name in cfg.ISO.WRITERS if name not in WRITERS]
    if unknown:
        raise ValueError(f"ISO.WRITERS must name some of {', '.join(WRITERS)}, got {', '.join(unknown)}")
    return [WRITERS[name](cfg) for name in cfg.ISO.WRITERS]
