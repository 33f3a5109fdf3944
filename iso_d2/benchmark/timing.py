"""Times of alternatives, measured in turns within one run, since machines change from minute to minute."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

# A measurement shorter than this (seconds) is of several calls in a row.
SHORTEST = 0.01
# Rounds that are made whatever the time they take: so many where one round is below LONG_ROUND seconds
LEAST_ROUNDS, LONG_ROUND, LEAST_LONG_ROUNDS = 5, 10.0, 2


def quartiles(values):
    """Median and quartiles, linearly interpolated.

    Args:
        values (sequence of float): one or more.

    Returns:
        dict[str, float]: ``median``, ``q1``, ``q3``.
    """
    q1, median, q3 = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "q1": q1, "q3": q3}


@dataclass(frozen=True)
class Comparison:
    """Times of alternatives by round.

    Args:
        times (dict[str, list[float]]): seconds by name; entry i of each list is of round i.
    """

    times: dict

    @property
    def n(self):
        """Number of rounds."""
        return len(next(iter(self.times.values())))

    def milliseconds(self, name):
        """Median and quartiles of one alternative, in ms."""
        return quartiles([1000 * seconds for seconds in self.times[name]])

    def ratio(self, name, against):
        """Median and quartiles of time(name) / time(against), each ratio within one round."""
        return quartiles([a / b for a, b in zip(self.times[name], self.times[against], strict=True)])

    def with_derived(self, name, compute):
        """The same with one more alternative, whose time in a round follows from those of the others.

        Args:
            name (str): its name.
            compute (callable): dict[str, float] of one round, in seconds -> seconds.

        Returns:
            Comparison
        """
        rounds = [dict(zip(self.times, row, strict=True)) for row in zip(*self.times.values(), strict=True)]
        return Comparison({**self.times, name: [compute(row) for row in rounds]})


def compare(cases, rounds, seconds=math.inf, device="cpu", measure=None):
    """Measure alternatives in turns: A B C, C B A, A B C, ...

    Each is first called unmeasured, twice, or once if that takes over a second, on CUDA three times. Rounds
    end with `rounds`, or before one that would go beyond `seconds`; LEAST_ROUNDS of them are made all the
    same (LEAST_LONG_ROUNDS where one takes over LONG_ROUND seconds), if `rounds` allows.

    Args:
        cases (dict[str, callable]): called without arguments.
        rounds (int): how many at most, 1 or more.
        seconds (float): time for all of it.
        device (str): "cpu" is measured by the clock, "cuda" by events of the device.
        measure (callable): (case, calls) -> seconds of one call; by default as `device` has it.

    Returns:
        Comparison

    Raises:
        ValueError: no alternatives, or no rounds.
    """
    if not cases or rounds < 1:
        raise ValueError(f"compare needs alternatives and 1 round or more, got {len(cases)} and {rounds}")
    on_cuda = torch.device(device).type == "cuda"
    measure = measure or (_measure_cuda if on_cuda else _measure_cpu)
    calls, spent = {}, 0.0
    for name, case in cases.items():
        first = once = measure(case, 1)
        spent += first
        for _ in range(2 if on_cuda else int(first <= 1)):
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


def _measure_cpu(case, calls):
    start = time.perf_counter()
    for _ in range(calls):
        case()
    return (time.perf_counter() - start) / calls


def _measure_cuda(case, calls):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        case()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / calls
