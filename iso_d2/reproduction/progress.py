"""How far the runs are, and how long the rest will take."""

import sys
import time

# Seconds between two lines of progress: on a terminal, where each replaces the last, and in a file
TERMINAL_PERIOD, FILE_PERIOD = 2.0, 60.0


class Progress:
    """One line on what runs now, with elapsed and remaining time of it and of everything.

    The remaining time comes from what the iterations of a job have taken so far. For those that have not
    begun it is that of the same group, in the proportion of the guesses in their :class:`.arms.Run`.

    Args:
        jobs (sequence of Job): all that are to be run.
        parallel (int): how many side by side.
        say (callable): takes a line.
        clock (callable): seconds.
    """

    def __init__(self, jobs, parallel, say, clock=time.monotonic):
        self.jobs = list(jobs)
        self.parallel = parallel
        self.say = say
        self.clock = clock
        self.begin = clock()
        self._last = self.begin
        self._begun = {}  # name -> (seconds, iterations done before)
        self._rates = {}  # name -> seconds an iteration has taken, start and evaluations included
        self._ended = set()

    def started(self, job):
        """Note that a job begins now."""
        self._begun[job.name] = self.clock(), job.iteration()

    def ended(self, job):
        """Note that nothing more comes of a job, begun or not."""
        if job.name in self._begun:
            self._measure(job)
        self._ended.add(job.name)

    def show(self, active):
        """Say the line, if it is time for it again.

        Args:
            active (list[Process]): what runs.
        """
        on_terminal = self.say is print and sys.stdout.isatty()
        period = TERMINAL_PERIOD if on_terminal else FILE_PERIOD
        if active and self.clock() - self._last >= period:
            self._last = self.clock()
            line = self.line([process.job for process in active])
            if on_terminal:
                print(f"\r\033[K{line}", end="", flush=True)
            else:
                self.say(line)

    def line(self, jobs):
        """str: on these jobs, which run, and on all."""
        parts = []
        for job in jobs:
            self._measure(job)
            elapsed = self.clock() - self._begun[job.name][0]
            parts.append(
                f"{job.name}: iteration {job.iteration()} of {job.iterations}, {clock_text(elapsed)}, "
                f"{clock_text(self.remaining(job))} left"
            )
        rest = [self.remaining(job) for job in self.jobs if job.name not in self._ended]
        known = [seconds for seconds in rest if seconds is not None]
        left = max(sum(known) / self.parallel, *known) if known else None if rest else 0.0
        more = "more than " if known and None in rest else ""
        parts.append(
            f"all: {len(self._ended)} of {len(self.jobs)} ended, {clock_text(self.clock() - self.begin)}, "
            f"{more}{clock_text(left)} left"
        )
        return " | ".join(parts)

    def remaining(self, job):
        """float or None: seconds that a job still takes; None: nothing like it has been measured."""
        rate = self._rate(job)
        return None if rate is None else rate * max(0, job.iterations - job.iteration())

    def _rate(self, job):
        if job.name in self._rates:
            return self._rates[job.name]
        measured = [
            (self._rates[other.name], other.run.seconds)
            for other in self.jobs
            if other.name in self._rates and other.arm.group == job.arm.group
        ]
        if job.run.seconds is None:
            return sum(rate for rate, _ in measured) / len(measured) if measured else None
        ratios = [rate / guess for rate, guess in measured if guess]
        return job.run.seconds * (sum(ratios) / len(ratios) if ratios else 1.0)

    def _measure(self, job):
        begin, before = self._begun[job.name]
        iterations = job.iteration() - before
        if iterations > 0:
            self._rates[job.name] = (self.clock() - begin) / iterations


def clock_text(seconds):
    """'1:02:03' of a number of seconds; '?' of None."""
    if seconds is None:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
