import pytest

from benchmarks import timing
from benchmarks.timing import LEAST_LONG_ROUNDS, LEAST_ROUNDS, Comparison, compare, quartiles


@pytest.fixture
def order(monkeypatch):
    """Cases return a name and the seconds that they are said to have taken; the names are listed."""
    names = []

    def measure(case, calls):
        name, seconds = case()
        names.append(name)
        return seconds

    monkeypatch.setattr(timing, "measure", measure)
    return names


def cases(**seconds):
    return {name: lambda name=name, took=took: (name, took) for name, took in seconds.items()}


def test_alternatives_take_turns_and_the_order_is_turned_round(order):
    compare(cases(a=2.0, b=3.0, c=4.0), rounds=3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"


def test_rounds_end_with_the_time(order):
    # 3 s of first calls, 3 s a round: the seventh round ends after 24 s, the eighth would after 27 s
    assert compare(cases(a=1.5, b=1.5), 100, seconds=26).n == 7


@pytest.mark.parametrize(("seconds", "least"), [(1.5, LEAST_ROUNDS), (11.0, LEAST_LONG_ROUNDS)])
def test_least_number_of_rounds_is_made_without_time(order, seconds, least):
    assert compare(cases(a=seconds), 100, seconds=0).n == least


def test_rounds_are_never_above_those_asked_for(order):
    assert compare(cases(a=1.5), 2, seconds=0).n == 2
    assert compare(cases(a=1.5), 7).n == 7


def test_clock_of_the_cpu_measures_one_call(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: clock[0])
    calls = []

    def case():
        calls.append(1)
        clock[0] += 0.003

    measured = compare({"a": case}, 2)
    assert len(calls) == 1 + 1 + 2 * 4  # two unmeasured, then four in each measurement, 0.01 s or more
    assert measured.times["a"] == pytest.approx([0.003, 0.003])


@pytest.mark.parametrize(("given", "rounds"), [({}, 1), ({"a": print}, 0)])
def test_nothing_to_compare_is_an_error(given, rounds):
    with pytest.raises(ValueError, match="needs alternatives and 1 round or more"):
        compare(given, rounds)


def test_quartiles_of_given_numbers():
    assert quartiles([4, 1, 3, 2, 5]) == {"median": 3, "q1": 2, "q3": 4}
    assert quartiles([7.0]) == {"median": 7, "q1": 7, "q3": 7}


def test_ratio_is_of_pairs_and_not_of_medians():
    measured = Comparison({"a": [1.0, 10.0, 100.0], "b": [2.0, 5.0, 400.0]})
    # ratios 0.5, 2, 0.25; the medians' ratio would be 2
    assert measured.ratio("a", "b") == pytest.approx({"median": 0.5, "q1": 0.375, "q3": 1.25})
    assert measured.milliseconds("b") == pytest.approx({"median": 5000, "q1": 3500, "q3": 202500})
    assert measured.n == 3


def test_derived_alternative_is_computed_round_by_round():
    measured = Comparison({"with": [5.0, 9.0], "without": [3.0, 3.0]})
    derived = measured.with_derived("every second", lambda row: (row["with"] + row["without"]) / 2)
    assert derived.times["every second"] == [4.0, 6.0]
    assert "every second" not in measured.times
