from types import SimpleNamespace

import pytest

from experiments.progress import Progress, clock_text


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class ToyRun:
    """A run of 100 iterations; `done` says how far it is."""

    def __init__(self, name, table="t", group="g"):
        self.name, self.done, self.iterations = name, 0, 100
        self.experiment = SimpleNamespace(table=table, group=group)

    def iteration(self):
        return self.done


@pytest.fixture
def clock():
    return Clock()


def measured(clock, runs, parallel=1):
    """A progress whose first run has made half of its iterations in 100 seconds."""
    progress = Progress(runs, parallel, print, clock)
    progress.started(runs[0])
    clock.now, runs[0].done = clock.now + 100.0, 50
    return progress


def test_remaining_time_is_that_of_the_iterations_so_far(clock):
    runs = [ToyRun("a"), ToyRun("b")]
    line = measured(clock, runs).line(runs[:1])
    # 2 s an iteration: 50 of them are left of the one, and all of the other
    assert line == (
        "a: iteration 50 of 100, 0:01:40, 0:01:40 left | all: 0 of 2 ended, 0:01:40, 0:05:00 left"
    )


def test_iterations_from_before_a_stop_took_no_time_now(clock):
    run = ToyRun("a")
    run.done = 40
    progress = measured(clock, [run])
    progress.line([run])
    assert progress.remaining(run) == pytest.approx(10.0 * 50)


def test_the_nearest_relatives_say_how_long_an_iteration_takes(clock):
    slow, quick = ToyRun("slow"), ToyRun("quick", table="u")
    new, cousin, stranger = ToyRun("new"), ToyRun("cousin", table="v"), ToyRun("stranger", "w", "h")
    progress = measured(clock, [slow, quick, new, cousin, stranger])
    progress.ended(slow)
    progress.started(quick)
    clock.now, quick.done = clock.now + 50.0, 50
    progress.ended(quick)
    assert progress.remaining(new) == pytest.approx(200.0)
    assert progress.remaining(cousin) == pytest.approx(150.0)
    assert progress.remaining(stranger) is None


def test_side_by_side_the_rest_takes_its_share_of_the_time_but_no_less_than_the_longest(clock):
    runs = [ToyRun(name) for name in "abcd"]
    progress = measured(clock, runs, parallel=2)
    progress.ended(runs[0])
    assert progress.line([]).endswith("0:05:00 left")
    runs[1].iterations = 1000
    assert progress.line([]).endswith("0:33:20 left")


def test_unknown_times_are_no_numbers(clock):
    first, second = ToyRun("a"), ToyRun("b", table="u", group="h")
    assert Progress([first, second], 1, print, clock).line([]).endswith("0:00:00, ? left")
    progress = measured(clock, [first, second])
    assert progress.line([first]).endswith("0:01:40, more than 0:01:40 left")
    progress.ended(first)
    progress.ended(second)
    assert progress.line([]) == "all: 2 of 2 ended, 0:01:40, 0:00:00 left"


def test_clock_text():
    assert clock_text(3723.4) == "1:02:03"
