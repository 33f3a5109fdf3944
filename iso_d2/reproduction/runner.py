"""Training the arms one after the other, or some side by side, each in processes of its own.

What runs is ``tools/train_net.py --resume`` with a config and options, as anybody can type it, so that a
crash of one arm leaves the others alone.
"""

import re
import signal
import time

from .arm import PRETRAINING
from .files import command_text
from .jobs import BACKBONE_FILE
from .process import Process
from .progress import Progress
from .records import write_record
from .weights import write_backbone

# Seconds between two looks at the processes, and that a process has to end after SIGTERM
POLL, GRACE = 1.0, 10.0
# Of the training loop, and of a detector whose weights are not finite any more
DIVERGED = re.compile(
    r"FloatingPointError: (?:Loss became infinite or NaN at iteration=(\d+)"
    r"|Predicted boxes or scores contain Inf/NaN)"
)


class Runner:
    """Runs jobs until all are done, one cannot go on or the time is over.

    Args:
        jobs (sequence of Job): in their order.
        parallel (int): how many side by side.
        budget (float or None): seconds from the start after which everything is stopped; None: no end.
        force (bool): run those again that have a result; it is set aside at once.
        say (callable): takes each line of the progress.
        record (callable): as :func:`.records.write_record`.
    """

    def __init__(self, jobs, parallel=1, budget=None, force=False, say=print, record=write_record):
        self.jobs = list(jobs)
        self.parallel = parallel
        self.budget = budget
        self.force = force
        self.say = say
        self.record = record
        self.failed, self.skipped, self.done = {}, {}, []
        self.stopped = ""
        self._active = []

    def run(self):
        """Run them.

        Returns:
            bool: whether none failed. ``failed`` and ``skipped`` hold name -> reason, ``stopped`` why
            something is left.
        """
        started = time.monotonic()
        waiting = self._choose()
        progress = Progress(waiting, self.parallel, self.say)
        try:
            while waiting or self._active:
                if self.budget is not None and time.monotonic() - started > self.budget:
                    self.stopped = "the time budget is used up"
                    break
                while len(self._active) < self.parallel and (job := self._next(waiting)):
                    waiting.remove(job)
                    self._start(job, progress)
                time.sleep(POLL)
                for process in list(self._active):
                    self._look_at(process, progress)
                progress.show(self._active)
        except KeyboardInterrupt:
            self.stopped = "it was interrupted"
        finally:
            self._stop_all()
        if self.stopped:
            without = " without --force" if self.force else ""
            self.say(f"Stopped: {self.stopped}. The same command{without} goes on where it was.")
        return not self.failed

    def _choose(self):
        """Those to be run."""
        waiting = []
        starts = {job.arm.name for job in self.jobs}
        for job in self.jobs:
            if self._is_done(job):
                self.say(f"{job.name}: done already ({job.result_file.relative_to(job.root)})")
            elif isinstance(job.run, str) or (job.obstacle() and job.arm.starts_from not in starts):
                self._skip(job)
            else:
                waiting.append(job)
                if job.result_file.is_file() and (self.force or job.outdated()):
                    _set_aside(job)
        return waiting

    def _is_done(self, job):
        """Whether its record is of this configuration and whoever starts from it has its weights."""
        if self.force or isinstance(job.run, str) or not job.result_file.is_file():
            return False
        if why := job.outdated():
            self.say(f"{job.name}: {why}: it is run again")
            return False
        if job.arm.table == PRETRAINING and not (job.root / job.folder / BACKBONE_FILE).is_file():
            followers = [other for other in self.jobs if other.arm.starts_from == job.arm.name]
            return all(other.result_file.is_file() for other in followers if other.seed == job.seed)
        return True

    def _next(self, waiting):
        """The first that does not start from what is still to come; None if there is none."""
        unfinished = {(job.arm.name, job.seed) for job in [*waiting, *(p.job for p in self._active)]}
        return next((job for job in waiting if (job.arm.starts_from, job.seed) not in unfinished), None)

    def _skip(self, job):
        self.skipped[job.name] = job.obstacle()
        self.say(f"{job.name}: skipped. {self.skipped[job.name]}")

    def _start(self, job, progress):
        if job.obstacle():  # an arm that starts from another one's weights, which did not come
            self._skip(job)
            progress.ended(job)
            return
        try:
            process = Process(job, self.parallel)
        except BlockingIOError:
            self._fail(job, f"another process works in {job.folder}")
            progress.ended(job)
            return
        self._active.append(process)
        progress.started(job)
        self.say(f"{job.name}: {command_text(process.command)}")

    def _look_at(self, process, progress):
        if process.is_running():
            return
        job = process.job
        process.account()
        error = process.error()
        if not error and process.start_next():
            return
        self._active.remove(process)
        process.close()
        progress.ended(job)
        diverged = DIVERGED.search(error)
        if error and not diverged:
            self._fail(job, f"{error} (all of it: {job.folder / 'console.txt'})")
        else:
            self._record(job, int(diverged[1] or job.iteration()) if diverged else None)

    def _record(self, job, diverged):
        try:
            if job.arm.table == PRETRAINING and diverged is None:
                folder = job.root / job.folder
                write_backbone(folder / "model_final.pth", folder / BACKBONE_FILE)
            self.record(job, diverged=diverged)
        except (KeyError, OSError, ValueError) as problem:
            self._fail(job, f"no record: {type(problem).__name__}: {problem}")
            return
        self.done.append(job.name)
        how = "done" if diverged is None else f"diverged at iteration {diverged}"
        self.say(f"{job.name}: {how}, {job.result_file.relative_to(job.root)}")

    def _fail(self, job, reason):
        self.failed[job.name] = reason
        self.say(f"{job.name}: FAILED: {reason}")

    def _stop_all(self):
        for process in self._active:
            process.signal(signal.SIGTERM)
        end = time.monotonic() + GRACE
        for process in self._active:
            while process.is_running() and time.monotonic() < end:
                time.sleep(0.1)
            process.signal(signal.SIGKILL)
            process.wait()
            process.account()
            process.close()
        self._active = []


def _set_aside(job):
    """Keep what an earlier run has left, its record too, in a folder of its own beside the new one."""
    folder, number = job.root / job.folder, 1
    while (target := folder.with_name(f"{folder.name}.before{number}")).exists():
        number += 1
    if folder.is_dir():
        folder.rename(target)
    else:
        target.mkdir(parents=True)
    job.result_file.rename(target / "record.json")
