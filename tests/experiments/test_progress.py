from types import SimpleNamespace

import pytest

from iso_d2.reproduction.progress import Progress, clock_text


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class ToyJob:
    """A job of 100 iterations; `done` says how far it is."""

    def __init__(self, name, seconds, group="cifar"):
        self.name, self.done, self.iterations = name, 0, 100
        self.arm = SimpleNamespace(group=group)
        self.run = SimpleNamespace(seconds=seconds)

    def iteration(self):
        return self.done


@pytest.fixture
def clock():
    return Clock()


def test_remaining_time_is_that_of_the_iterations_so_far(clock):
    first, second = ToyJob("a", 1.0), ToyJob("b", 2.0)
    progress = Progress([first, second], 1, print, clock)
    progress.started(first)
    assert progress.remaining(first) == 100.0  # nothing measured: the guess
    clock.now, first.done = 60.0, 20
    line = progress.line([first])
    # 3 s an iteration instead of 1: 80 of them are left, and the other takes three times its guess, too.
    assert line == (
        "a: iteration 20 of 100, 0:01:00, 0:04:00 left | all: 0 of 2 ended, 0:01:00, 0:14:00 left"
    )


def test_iterations_from_before_a_stop_took_no_time_now(clock):
    job = ToyJob("a", 1.0)
    job.done = 50
    progress = Progress([job], 1, print, clock)
    progress.started(job)
    clock.now, job.done = 20.0, 60
    progress.line([job])
    assert progress.remaining(job) == pytest.approx(2.0 * 40)


def test_side_by_side_the_rest_takes_its_share_of_the_time_but_no_less_than_the_longest(clock):
    jobs = [ToyJob(name, 1.0) for name in "abc"]
    jobs[0].iterations = 1000
    progress = Progress(jobs, 2, print, clock)
    assert progress.line([]).endswith("0:16:40 left")
    jobs[0].iterations = 100
    assert progress.line([]).endswith("0:02:30 left")


def test_unknown_times_are_no_numbers(clock):
    first, second = ToyJob("a", None), ToyJob("b", None, group="mri")
    progress = Progress([first, second], 1, print, clock)
    assert progress.line([]).endswith("0:00:00, ? left")
    progress.started(first)
    clock.now, first.done = 25.0, 50
    assert progress.line([first]).endswith("0:00:25, more than 0:00:25 left")
    clock.now, first.done = 50.0, 100
    progress.ended(first)
    assert progress.remaining(second) is None
    progress.ended(second)
    assert progress.line([]) == "all: 2 of 2 ended, 0:00:50, 0:00:00 left"


def test_clock_text():
    assert clock_text(3723.4) == "1:02:03"
