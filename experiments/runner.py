"""Training the experiments one after the other, or some side by side, each in processes of its own.

What runs is ``tools/train_net.py --resume`` with a config and options, as anybody can type it, so that a
crash of one run leaves the others alone. Whether a record still counts says ``Run.outdated``, why a run
cannot start ``Run.obstacle``.
"""

import re
import signal
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from .experiment import PRETRAINING
from .models import write_backbone
from .progress import Progress
from .record import write_record
from .run import BACKBONE_FILE, command_text
from .training import CONSOLE, Training

# Seconds between two looks at the trainings, and that one has to end after SIGTERM
POLL, GRACE = 1.0, 10.0
# Of the training loop, and of a detector whose weights are not finite any more
DIVERGED = re.compile(
    r"FloatingPointError: (?:Loss became infinite or NaN at iteration=(\d+)"
    r"|Predicted boxes or scores contain Inf/NaN)"
)


class Runner:
    """Carries out runs in their order until all are done or the time is over.

    Args:
        runs (sequence of Run): what is to be done.
        parallel (int): how many side by side.
        budget (float or None): seconds from the start after which everything is stopped; None: no end.
        force (bool): carry those out again that have a record; it is set aside at once.
        say, record, clock (callable): take a line; as :func:`.record.write_record`; give seconds.
    """

    def __init__(
        self, runs, parallel=1, budget=None, force=False, say=print, record=write_record, clock=time.monotonic
    ):
        self.runs, self.parallel, self.budget, self.force = list(runs), parallel, budget, force
        self.say, self.record, self.clock = say, record, clock
        self.failed, self.skipped = {}, {}
        self.stopped = ""
        self._active = {}  # future -> Training

    def run(self):
        """bool: whether none failed. ``failed``, ``skipped``: name -> reason; ``stopped``: why so early."""
        started = self.clock()
        waiting = self._choose()
        progress = Progress(waiting, self.parallel, self.say, self.clock)
        with ThreadPoolExecutor(self.parallel) as threads:
            try:
                while waiting or self._active:
                    if self.budget is not None and self.clock() - started > self.budget:
                        self.stopped = "the time budget is used up"
                        break
                    while len(self._active) < self.parallel and (run := self._next(waiting)):
                        waiting.remove(run)
                        self._start(run, threads, progress)
                    for future in wait(self._active, POLL, FIRST_COMPLETED).done:
                        training = self._active.pop(future)
                        progress.ended(training.run)
                        problem = future.exception()
                        error = f"{type(problem).__name__}: {problem}" if problem else future.result()
                        self._finish(training.run, error)
                    for training in self._active.values():
                        training.remove_old_checkpoints()
                    progress.show([training.run for training in self._active.values()])
            except KeyboardInterrupt:
                self.stopped = "it was interrupted"
            finally:
                self._stop_all()
        if self.stopped:
            without = " without --force" if self.force else ""
            self.say(f"Stopped: {self.stopped}. The same command{without} goes on where it was.")
        return not self.failed

    def _choose(self):
        """list[Run]: those to be carried out."""
        waiting, names = [], {run.experiment.name for run in self.runs}
        for run in self.runs:
            recorded = run.record_file.is_file() and not isinstance(run.setting, str)
            outdated = run.outdated() if recorded and not self.force else ""
            if outdated:
                self.say(f"{run.name}: {outdated}: it is run again")
            again = self.force or outdated
            if recorded and not again and not self._lacks_weights(run):
                self.say(f"{run.name}: done already ({run.record_file.relative_to(run.root)})")
                continue
            reason = run.obstacle()
            if reason and (isinstance(run.setting, str) or run.experiment.starts_from not in names):
                self._skip(run, reason)
                continue
            waiting.append(run)
            if recorded and again:
                _set_aside(run)
        return waiting

    def _lacks_weights(self, run):
        """Whether others are still to start from its weights, which are not here any more."""
        if run.experiment.table != PRETRAINING or (run.root / run.folder / BACKBONE_FILE).is_file():
            return False
        followers = [other for other in self.runs if other.experiment.starts_from == run.experiment.name]
        return not all(other.record_file.is_file() for other in followers if other.seed == run.seed)

    def _next(self, waiting):
        """The first that does not start from what is still to come; None if there is none."""
        active = [training.run for training in self._active.values()]
        unfinished = {(run.experiment.name, run.seed) for run in [*waiting, *active]}
        return next(
            (run for run in waiting if (run.experiment.starts_from, run.seed) not in unfinished), None
        )

    def _skip(self, run, reason):
        self.skipped[run.name] = reason
        self.say(f"{run.name}: skipped. {reason}")

    def _start(self, run, threads, progress):
        # incomplete data, or it starts from the weights of another run, which did not come
        if reason := run.obstacle(load=True):
            self._skip(run, reason)
            progress.ended(run)
            return
        try:
            training = Training(run, self.parallel)
        except BlockingIOError:
            self._fail(run, f"another process works in {run.folder}")
            progress.ended(run)
            return
        progress.started(run)
        self.say(f"{run.name}: {command_text(run.commands()[0])}")
        self._active[threads.submit(training)] = training

    def _finish(self, run, error):
        diverged = DIVERGED.search(error)
        if error and not diverged:
            self._fail(run, f"{error} (all of it: {run.folder / CONSOLE})")
            return
        iteration = int(diverged[1] or run.iteration()) if diverged else None
        try:
            if run.experiment.table == PRETRAINING and not diverged:
                folder = run.root / run.folder
                write_backbone(folder / "model_final.pth", folder / BACKBONE_FILE)
            self.record(run, diverged=iteration)
        except (KeyError, OSError, ValueError) as problem:
            self._fail(run, f"no record: {type(problem).__name__}: {problem}")
            return
        how = "done" if not diverged else f"diverged at iteration {iteration}"
        self.say(f"{run.name}: {how}, {run.record_file.relative_to(run.root)}")

    def _fail(self, run, reason):
        self.failed[run.name] = reason
        self.say(f"{run.name}: FAILED: {reason}")

    def _stop_all(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for training in self._active.values():
                training.stop(number)
            wait(self._active, GRACE)
        self._active = {}


def _set_aside(run):
    """Keep what an earlier run has left, its record too, in a folder of its own beside the new one."""
    folder, number = run.root / run.folder, 1
    while (target := folder.with_name(f"{folder.name}.before{number}")).exists():
        number += 1
    if folder.is_dir():
        folder.rename(target)
    else:
        target.mkdir(parents=True)
    run.record_file.rename(target / "record.json")
