"""The processes of one job, what they use and what they leave behind."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import time

from ..data.catalog import dataset_root
from ..files import write_atomically
from ..provenance import git_state


class Process:
    """The commands of a job, one running at a time, with their output in ``console.txt`` of its folder.

    Args:
        job (Job): what to run.
        parallel (int): how many jobs share the CPU cores.

    Raises:
        BlockingIOError: another runner, or a training that has outlived its own, works in the job's folder.
    """

    def __init__(self, job, parallel):
        self.job = job
        self.folder = job.root / job.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        # Inherited by the training, which holds it as long as it lives
        self._lock = os.open(self.folder / "lock", os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise
        self.commands = job.commands()
        self.environment = dict(os.environ, PYTHONUNBUFFERED="1", NO_ALBUMENTATIONS_UPDATE="1")
        cores = len(os.sched_getaffinity(0))
        self.environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // parallel)))
        # A relative one is relative to where the user is, not to the repository.
        self.environment["DETECTRON2_DATASETS"] = str(dataset_root().absolute())
        self.state = {**git_state(job.root), "threads": int(self.environment["OMP_NUM_THREADS"])}
        self.start_next()

    def start_next(self):
        """Start the next command.

        Returns:
            bool: whether there was one.
        """
        if not self.commands:
            return False
        self.command = self.commands.pop(0)
        self.started = time.monotonic()
        self.first_iteration = self.job.iteration()
        self.peak = 0
        with open(self.folder / "console.txt", "a") as console:
            self.offset = console.tell()
            # A session of its own, so that the workers of its data loaders can be stopped with it
            self._process = subprocess.Popen(
                self.command,
                cwd=self.job.root,
                env=self.environment,
                stdout=console,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(self._lock,),
            )
        return True

    def is_running(self):
        self._measure()
        _remove_old_checkpoints(self.folder)
        return self._process.poll() is None

    def wait(self):
        self._process.wait()

    def close(self):
        """Leave the folder to others."""
        os.close(self._lock)

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def error(self):
        """str: the last line of the output that looks like an error; "" if all went well."""
        code = self._process.returncode
        if code == 0:
            return ""
        with open(self.folder / "console.txt", errors="replace") as console:
            console.seek(self.offset)
            lines = [line.strip() for line in console if line.strip()]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|error:", line)]
        if code < 0:
            name = signal.Signals(-code).name
            memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
            return f"killed by {name}{memory}"
        return (errors or lines or [f"exit code {code}"])[-1]

    def account(self):
        """Add this part to ``parts.json``: seconds, peak memory, commit, iterations.

        What is damaged there, or cannot be written to a full disk, is lost: no reason to stop others.
        """
        path = self.folder / "parts.json"
        try:
            parts = json.loads(path.read_text())
        except (OSError, ValueError):
            parts = []
        part = {
            **self.state,
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory_mb": round(self.peak / 1024),
            "evaluation_only": "--eval-only" in self.command,
            "from_iteration": self.first_iteration,
            "to_iteration": self.job.iteration(),
        }
        with contextlib.suppress(OSError):
            write_atomically(path, json.dumps([*parts, part], indent=1))

    def _measure(self):
        with contextlib.suppress(OSError), open(f"/proc/{self._process.pid}/status") as status:
            peak = re.search(r"VmHWM:\s+(\d+) kB", status.read())
            self.peak = max(self.peak, int(peak[1]) if peak else 0)


def _remove_old_checkpoints(folder):
    """Keep the newest two; a training writes far more of them than a disk may have room for."""
    pointer = folder / "last_checkpoint"
    if not pointer.is_file():
        return
    last = pointer.read_text().strip()
    saved = sorted(p for p in folder.glob("model_[0-9]*.pth"))
    older = [p for p in saved if p.name < last] if last != "model_final.pth" else saved
    for path in older[:-1] if last != "model_final.pth" else older:
        path.unlink()
