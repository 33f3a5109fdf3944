"""Times of alternatives, measured in turns within one run, since machines change from minute to minute.

torch.utils.benchmark times one statement after the other, so that a slow minute counts against one of them
alone, and it calls each twice unmeasured before every measurement, which doubles or triples the time of steps
that take seconds.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from .report import judge

# A measurement shorter than this (seconds) is of several calls in a row.
SHORTEST = 0.01
# Rounds that are made whatever time they take: so many where one round is below LONG_ROUND seconds
LEAST_ROUNDS, LONG_ROUND, LEAST_LONG_ROUNDS = 5, 10.0, 2


def clock():
    """Seconds, once the GPU has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def quartiles(values):
    """``median``, ``q1`` and ``q3`` of one or more values, linearly interpolated: dict[str, float]."""
    return dict(zip(("q1", "median", "q3"), np.percentile(values, [25, 50, 75]).tolist(), strict=True))


@dataclass(frozen=True)
class Comparison:
    """Times of alternatives: `times` is name -> seconds by round, entry i of each list of round i."""

    times: dict[str, list[float]]

    @property
    def n(self):
        """Number of rounds."""
        return len(next(iter(self.times.values())))

    def milliseconds(self, name):
        """Median and quartiles of one alternative, in ms."""
        return quartiles([1000 * seconds for seconds in self.times[name]])

    def per_second(self, name, amount):
        """Median and quartiles of what one alternative does in a second, if a call does `amount` of it."""
        return quartiles([amount / seconds for seconds in self.times[name]])

    def ratio(self, name, against):
        """Median and quartiles of time(name) / time(against), each ratio within one round."""
        return quartiles([a / b for a, b in zip(self.times[name], self.times[against], strict=True)])

    def with_derived(self, name, compute):
        """The same with one more alternative, computed from the others' seconds in each round, a dict."""
        rounds = [dict(zip(self.times, row, strict=True)) for row in zip(*self.times.values(), strict=True)]
        return Comparison({**self.times, name: [compute(row) for row in rounds]})

    def rows(self, ours, column="network", limits=None, images=None):
        """Rows of a table: the time of each alternative, and that of `ours` over it.

        `column` is that of the names, `limits` name -> the largest ratio wanted, `images` how many a call
        works on, for images a second.
        """
        rows = []
        for name in self.times:
            row = {column: name, "ms": self.milliseconds(name), "n": self.n}
            if name != ours:
                row["ours over it"] = self.ratio(ours, name)
                if name in (limits or {}):
                    row["target"] = judge(row["ours over it"], at_most=limits[name])
            if images:
                row["images / s"] = 1000 * images / row["ms"]["median"]
            rows.append(row)
        return rows


def compare(cases, rounds, seconds=math.inf):
    """Measure alternatives in turns: A B C, C B A, A B C, ...

    Each is first called unmeasured, twice, or once if that takes over a second, with CUDA three times. Rounds
    end with `rounds`, or before one that would go beyond `seconds`; LEAST_ROUNDS of them are made all the
    same (LEAST_LONG_ROUNDS where one takes over LONG_ROUND seconds), if `rounds` allows.

    `cases` are called without arguments. No alternatives, or less than one round, is a ValueError.
    """
    if not cases or rounds < 1:
        raise ValueError(f"compare needs alternatives and 1 round or more, got {len(cases)} and {rounds}")
    calls, spent = {}, 0.0
    for name, case in cases.items():
        first = once = measure(case, 1)
        spent += first
        for _ in range(2 if torch.cuda.is_initialized() else int(first <= 1)):
            once = measure(case, 1)
            spent += once
        calls[name] = min(1000, math.ceil(SHORTEST / max(once, 1e-9)))
    times, order, longest = {name: [] for name in cases}, list(cases), 0.0
    for done in range(rounds):
        least = LEAST_ROUNDS if longest < LONG_ROUND else LEAST_LONG_ROUNDS
        if done >= least and spent + longest > seconds:
            break
        this_round = 0.0
        for name in order:
            times[name].append(measure(cases[name], calls[name]))
            this_round += times[name][-1] * calls[name]
        order.reverse()
        spent, longest = spent + this_round, max(longest, this_round)
    return Comparison(times)


def measure(case, calls):
    """Seconds of one of so many calls in a row."""
    start = clock()
    for _ in range(calls):
        case()
    return (clock() - start) / calls
