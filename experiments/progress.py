"""How far the runs are, and how long the rest will take."""

import datetime
import sys
import time

# Seconds between two lines of progress: on a terminal, where each replaces the last, and in a file
TERMINAL_PERIOD, FILE_PERIOD = 2.0, 60.0


class Progress:
    """One line on what runs now, with elapsed and remaining time of it and of everything.

    The remaining time comes from what the iterations of a run have taken so far. For a run that has not begun
    it is the mean of those of its table, else of its group. `runs` are all that are to be carried out,
    `parallel` of them side by side; `say` takes a line, `clock` gives seconds.
    """

    def __init__(self, runs, parallel, say, clock=time.monotonic):
        self.runs, self.parallel, self.say, self.clock = list(runs), parallel, say, clock
        self.begin = self._last = clock()
        self._begun = {}  # name -> (seconds, iterations done before)
        self._rates = {}  # name -> seconds an iteration has taken, start and evaluations included
        self._ended = set()

    def started(self, run):
        """Note that a run begins now."""
        self._begun[run.name] = self.clock(), run.iteration()

    def ended(self, run):
        """Note that nothing more comes of a run, begun or not."""
        if run.name in self._begun:
            self._measure(run)
        self._ended.add(run.name)

    def show(self, active):
        """Say the line on the runs that are trained now, if it is time for it again."""
        on_terminal = self.say is print and sys.stdout.isatty()
        period = TERMINAL_PERIOD if on_terminal else FILE_PERIOD
        if active and self.clock() - self._last >= period:
            self._last, line = self.clock(), self.line(active)
            if on_terminal:
                print(f"\r\033[K{line}", end="", flush=True)
            else:
                self.say(line)

    def line(self, active):
        """str: on these runs, and on all."""
        parts = []
        for run in active:
            self._measure(run)
            elapsed = self.clock() - self._begun[run.name][0]
            parts.append(
                f"{run.name}: iteration {run.iteration()} of {run.iterations}, {clock_text(elapsed)}, "
                f"{clock_text(self.remaining(run))} left"
            )
        rest = [self.remaining(run) for run in self.runs if run.name not in self._ended]
        known = [seconds for seconds in rest if seconds is not None]
        left = max(sum(known) / self.parallel, *known) if known else None if rest else 0.0
        more = "more than " if known and None in rest else ""
        parts.append(
            f"all: {len(self._ended)} of {len(self.runs)} ended, {clock_text(self.clock() - self.begin)}, "
            f"{more}{clock_text(left)} left"
        )
        return " | ".join(parts)

    def remaining(self, run):
        """float or None: seconds that a run still takes; None: nothing like it has been measured."""
        for kind in (lambda r: r.name, lambda r: r.experiment.table, lambda r: r.experiment.group):
            like = [other for other in self.runs if kind(other) == kind(run) and other.name in self._rates]
            if like:
                rate = sum(self._rates[other.name] for other in like) / len(like)
                return rate * max(0, run.iterations - run.iteration())
        return None

    def _measure(self, run):
        begin, before = self._begun[run.name]
        iterations = run.iteration() - before
        if iterations > 0:
            self._rates[run.name] = (self.clock() - begin) / iterations


def clock_text(seconds):
    """'1:02:03' of a number of seconds; '?' of None."""
    return "?" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
