"""The processes of one run, what they use and what they leave behind."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from iso_d2.data import dataset_root
from iso_d2.files import write_atomically
from iso_d2.provenance import git_state

# In the folder of a run: what its commands have printed, and what each of them has used
CONSOLE, COMMANDS = "console.txt", "commands.json"
# Seconds between two looks at the memory of a process
POLL = 0.5


class Training:
    """The commands of a run, one after the other, each in a process of its own; `parallel` share the cores.

    A BlockingIOError says that another call, or a training that has outlived it, works in the run's folder.
    """

    def __init__(self, run, parallel):
        self.run = run
        self.folder = run.root / run.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        # Inherited by the training, which holds it as long as it lives
        self._lock = os.open(self.folder / "lock", os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise
        self._environment = dict(os.environ, PYTHONUNBUFFERED="1", NO_ALBUMENTATIONS_UPDATE="1")
        cores = len(os.sched_getaffinity(0))
        self._environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // parallel)))
        # A relative one is relative to where the user is, not to the repository.
        self._environment["DETECTRON2_DATASETS"] = str(dataset_root().absolute())
        # The code that resolves the configuration also trains, whichever iso_d2 is installed.
        paths = [str(run.root.absolute()), os.environ.get("PYTHONPATH", "")]
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._process, self._stopped, self._starting = None, False, threading.Lock()

    def __call__(self):
        """str: what went wrong with the commands, which are run to their end; "" if all went well."""
        try:
            for command in self.run.commands():
                if error := self._execute(command):
                    return error
            return ""
        finally:
            os.close(self._lock)

    def stop(self, number):
        """Send a signal to the process and to those that it has started; no other one is started."""
        with self._starting:
            self._stopped = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def remove_old_checkpoints(self):
        """Keep the newest two; a training writes far more of them than a disk may have room for."""
        pointer = self.folder / "last_checkpoint"
        if not pointer.is_file():
            return
        last = pointer.read_text().strip()
        saved = sorted(self.folder.glob("model_[0-9]*.pth"))
        # What is newer than the last one may be half written.
        old = saved if last == "model_final.pth" else [path for path in saved if path.name < last][:-1]
        for path in old:
            path.unlink(missing_ok=True)

    def _execute(self, command):
        started, first_iteration = time.monotonic(), self.run.iteration()
        with self._starting, open(self.folder / CONSOLE, "a") as console:
            if self._stopped:
                return "stopped"
            offset = console.tell()
            # A session of its own, so that the workers of its data loaders can be stopped with it
            self._process = subprocess.Popen(
                command,
                cwd=self.run.root,
                env=self._environment,
                stdout=console,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(self._lock,),
            )
        peak = self._wait()
        self.remove_old_checkpoints()
        self._account(
            seconds=round(time.monotonic() - started, 1),
            peak_memory_mb=round(peak / 1024),
            evaluation_only="--eval-only" in command,
            from_iteration=first_iteration,
            to_iteration=self.run.iteration(),
        )
        return "stopped" if self._stopped else self._error(self._process.returncode, offset)

    def _wait(self):
        """Wait for the process; returns the most memory that it has held, in KiB.

        `os.wait4` cannot tell it: on Linux its ``ru_maxrss`` counts the memory of the starting process, too.
        """
        peak, pause = 0, 0.02  # a short command is looked at, too
        while True:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{self._process.pid}/status").read_text()
                peak = max(peak, *map(int, re.findall(r"VmHWM:\s+(\d+) kB", status)), 0)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=pause)
                return peak
            pause = min(2 * pause, POLL)

    def _account(self, **used):
        """Add a command to ``commands.json``.

        What is damaged there, or cannot be written to a full disk, is lost: no reason to stop others.
        """
        path = self.folder / COMMANDS
        try:
            entries = json.loads(path.read_text())
        except (OSError, ValueError):
            entries = []
        threads = int(self._environment["OMP_NUM_THREADS"])
        entries.append({**git_state(self.run.root), "threads": threads, **used})
        with contextlib.suppress(OSError):
            write_atomically(path, json.dumps(entries, indent=1))

    def _error(self, code, offset):
        """str: the last line of the output that looks like an error; "" if all went well."""
        if code == 0:
            return ""
        if code < 0:
            name = signal.Signals(-code).name
            memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
            return f"killed by {name}{memory}"
        with open(self.folder / CONSOLE, errors="replace") as console:
            console.seek(offset)
            lines = [line.strip() for line in console if line.strip()]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|error:", line)]
        return (errors or lines or [f"exit code {code}"])[-1]
