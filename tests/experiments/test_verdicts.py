import math

import pytest
from toy_records import toy_record, toy_records

from experiments.experiment import BY_NAME, TABLES, Metric
from experiments.verdicts import Claim, interval, judge, read_claims, verdict_table

ONE, OTHER = "cifar10-isonet-gamma1e-4", "cifar10-resnet-bn"


def claim(margin=0.0, lower=False, learned=20.0):
    metric = Metric(dataset="cifar10_test", name="top1", lower=lower)
    return Claim("it is better", [ONE, OTHER], metric, learned, margin=margin)


def seeds(name, values, scale="small"):
    return [
        toy_record(name, scale, seed, diverged=9) if value is None
        else toy_record(name, scale, seed, {"cifar10_test": {"top1": value}})
        for seed, value in enumerate(values, 1)
    ]  # fmt: skip


def verdict(claim, one, other):
    return str(judge(claim, toy_records(*seeds(ONE, one), *seeds(OTHER, other))))


def test_a_difference_counts_if_it_is_beyond_the_spread():
    assert verdict(claim(), [61.0, 62.0, 63.0], [51.0, 52.0, 53.0]) == "holds"
    assert verdict(claim(), [51.0, 52.0, 53.0], [61.0, 62.0, 63.0]) == "does not hold"
    assert verdict(claim(), [61.0, 52.0, 73.0], [51.0, 62.0, 53.0]).startswith("undecided (within the spread")


def test_on_par_allows_for_the_margin():
    one, other = [59.4, 59.5, 59.6], [59.9, 60.0, 60.1]
    assert verdict(claim(), one, other) == "does not hold"
    assert verdict(claim(margin=1.0), one, other) == "holds"
    assert verdict(claim(margin=0.5), one, other).startswith("undecided")


def test_where_lower_is_better_the_sides_change():
    losses = claim(margin=0.01, lower=True, learned=0.3)
    assert verdict(losses, [0.10, 0.11, 0.12], [0.20, 0.21, 0.22]) == "holds"
    assert verdict(losses, [0.20, 0.21, 0.22], [0.10, 0.11, 0.12]) == "does not hold"
    assert verdict(losses, [0.34, 0.35], [0.33, 0.34]) == "undecided (neither has learned yet)"


def test_what_cannot_be_judged_is_undecided():
    assert verdict(claim(), [], [50.0]) == "undecided (not measured)"
    assert verdict(claim(), [60.0], [50.0, 51.0]) == "undecided (one seed)"
    assert verdict(claim(), [11.0, 12.0], [13.0, 14.0]) == "undecided (neither has learned yet)"


def test_what_diverged_has_learned_nothing():
    assert verdict(claim(), [None, None], [50.0, 51.0]) == "does not hold"
    assert verdict(claim(), [60.0, 61.0], [None, math.nan]) == "holds"


def test_the_largest_scale_counts():
    small = [*seeds(ONE, [60.0, 61.0]), *seeds(OTHER, [50.0, 51.0])]
    medium = [*seeds(ONE, [50.0, 51.0], "medium"), *seeds(OTHER, [60.0, 61.0], "medium")]
    assert judge(claim(), toy_records(*small, *medium)).scale == "medium"
    assert judge(claim(), toy_records(*small, *medium[:2])).scale == "small"


def test_the_interval_is_welchs():
    # the squared standard errors are 4/3 and 0, so 2 degrees of freedom, where t is 4.30265
    half = 4.30265 * (4 / 3) ** 0.5
    assert interval([0.0, 2.0, 4.0], [5.0, 5.0]) == pytest.approx((-3 - half, -3 + half), rel=1e-5)
    assert interval([1.0, 1.0], [0.0, 0.0]) == (1.0, 1.0)


def test_every_claim_compares_what_is_measured():
    metrics = {table.name: {(m.dataset, m.name) for m in table.metrics} for table in TABLES}
    for one in read_claims():
        assert len(one.experiments) == 2
        for name in one.experiments:
            assert (one.metric.dataset, one.metric.name) in metrics[BY_NAME[name].table]
        assert "on par" in one.claim if one.margin else "on par" not in one.claim


def test_the_table_of_verdicts():
    records = toy_records(*seeds(ONE, [61.0, 63.0]), *seeds(OTHER, [51.0]))
    long, short = verdict_table(records).splitlines(), verdict_table(records, short=True).splitlines()
    assert [cell.strip() for cell in long[2].split("|")[2:-1]] == [
        "top-1 90.32 %, no ResNet beside it",
        "top-1 62.0 ± 1.4 against 51.0 %",
        "small",
        "2, 1",
        "undecided (one seed)",
    ]
    assert len(long) == 2 + len(read_claims()) and "undecided (not measured)" in long[3]
    assert len(short) == 3 and "| top-1 62.0 ± 1.4 against 51.0 % (small) |" in short[2]
