import math
import statistics

import pytest
from toy_records import toy_record, toy_records

from experiments.experiment import BY_NAME, TABLES, Metric
from experiments.verdicts import (
    Claim,
    interval,
    judge,
    paired_interval,
    pooled_interval,
    read_claims,
    verdict_table,
)

ONE, OTHER, FRONT = "cifar10-isonet-gamma1e-4", "cifar10-resnet-bn", "cifar10-risonet-scaled"


def claim(margin=0.0, lower=False, learned=20.0):
    metric = Metric(dataset="cifar10_test", name="top1", lower=lower)
    return Claim("it is better", [ONE, OTHER], metric, learned, margin=margin)


def seeds(name, values, scale="cpu"):
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
    assert verdict(claim(), [60.0], [50.0]) == "undecided (one seed)"
    assert verdict(claim(), [11.0, 12.0], [13.0, 14.0]) == "undecided (neither has learned yet)"


def test_what_diverged_has_learned_nothing():
    assert verdict(claim(), [None, None], [50.0, 51.0]) == "does not hold"
    assert verdict(claim(), [60.0, 61.0], [None, math.nan]) == "holds"


def test_the_largest_scale_counts():
    cpu = [*seeds(ONE, [60.0, 61.0]), *seeds(OTHER, [50.0, 51.0])]
    full = [*seeds(ONE, [50.0, 51.0], "full"), *seeds(OTHER, [60.0, 61.0], "full")]
    assert judge(claim(), toy_records(*cpu, *full)).scale == "full"
    assert judge(claim(), toy_records(*cpu, *full[:2])).scale == "cpu"


def test_the_interval_is_welchs():
    # the squared standard errors are 4/3 and 0, so 2 degrees of freedom, where t is 4.30265
    half = 4.30265 * (4 / 3) ** 0.5
    assert interval([0.0, 2.0, 4.0], [5.0, 5.0]) == pytest.approx((-3 - half, -3 + half), rel=1e-5)
    assert interval([1.0, 1.0], [0.0, 0.0]) == (1.0, 1.0)


AP = Metric(dataset="boxes", name="AP")


def detectors(*drawn):
    return [toy_record("a", seed=seed, resampled={"boxes": {"AP": one}}) for seed, one in enumerate(drawn, 1)]


def test_detectors_are_compared_draw_by_draw():
    draws = [float(value) for value in range(0, 82, 2)]
    # However much the draws differ, the one is better by 3 on each of the 41, but for 43 once and -37 once.
    better = [draw + 3 for draw in draws]
    better[20], better[7] = draws[20] + 43, draws[7] - 37
    assert paired_interval(detectors(better), detectors(draws[:]), AP) == (3.0, 3.0)
    assert paired_interval(detectors(draws), detectors(draws), AP) == (0.0, 0.0)
    # 41 differences 0, 1, ..., 40 from a mean of two seeds: between the 2nd and the 40th of them
    seeds = detectors([2.0 * i + 5 for i in range(41)], [4.0 * i - 5 for i in range(41)])
    assert paired_interval(seeds, detectors(draws), AP) == pytest.approx((1.0, 39.0))
    assert paired_interval(detectors(draws), seeds, AP) == pytest.approx((-39.0, -1.0))


def test_a_draw_without_objects_says_nothing():
    one, other = detectors([4.0, 6.0, math.nan]), detectors([1.0, 3.0, math.nan])
    assert paired_interval(one, other, AP) == (3.0, 3.0)


@pytest.mark.parametrize(
    "lacking", [[], [toy_record("a", diverged=3)], detectors([1.0, 2.0], []), detectors([1.0])]
)
def test_without_draws_of_all_there_is_no_paired_interval(lacking):
    whole = detectors([1.0, 2.0])
    assert paired_interval(whole, whole, AP) == (0.0, 0.0)
    assert paired_interval(whole, lacking, AP) is None and paired_interval(lacking, whole, AP) is None


def test_every_claim_compares_what_is_measured():
    metrics = {table.name: {(m.dataset, m.name) for m in table.metrics} for table in TABLES}
    for one in read_claims():
        assert len(one.experiments) == (2 if one.against is None else 1)
        for name in one.experiments:
            assert (one.metric.dataset, one.metric.name) in metrics[BY_NAME[name].table]
        assert "on par" in one.claim if one.margin else "on par" not in one.claim


def test_the_table_of_verdicts():
    records = toy_records(*seeds(ONE, [61.0, 63.0]), *seeds(OTHER, [51.0]), *seeds(FRONT, [62.0]))
    long, short = verdict_table(records).splitlines(), verdict_table(records, short=True).splitlines()
    # the variance of one experiment with two seeds, 2, is that of all: +-12.706 sqrt(2 / 2 + 2 / 1)
    assert [cell.strip() for cell in long[3].split("|")[2:-1]] == [
        "top-1 90.32 %, no ResNet beside it",
        "top-1 62.0 ± 1.4 against 51.0 %",
        "cpu",
        "2, 1 pooled seeds",
        "-11.0 to +33.0",
        "undecided (within the spread)",
    ]
    assert len(long) == 2 + len(read_claims()) and "undecided (not measured)" in long[2]
    assert len(short) == 3 and "| top-1 62.0 against 51.0 % | cpu |" in " ".join(short[2].split())


def test_the_pooled_variance_stands_in_for_seeds_that_there_are_not():
    # variances 1 (two degrees of freedom) and 4 (one): pooled 2; t of three degrees of freedom is 3.18245
    half = 3.18245 * (2 / 1 + 2 / 3) ** 0.5
    found = pooled_interval([7.0], [1.0, 2.0, 3.0], [[1.0, 2.0, 3.0], [0.0, 8**0.5]])
    assert found == pytest.approx((5 - half, 5 + half), abs=1e-4)
    assert pooled_interval([7.0], [5.0], []) is None


def fold(name, number, dice, **more):
    dataset = f"lgg_fold{number}of5_val"
    final = {dataset: {"volume_dice_mean": statistics.mean(dice.values())}}
    return toy_record(name, seed=number + 1, final=final, patients={dataset: dice}, **more)


def out_of_fold(against=None, **more):
    metric = Metric(dataset="lgg_fold{fold}of5_val", name="volume_dice_mean")
    names = ["mri-folds-isounet"] if against else ["mri-folds-isounet", "mri-folds-unet-bn"]
    return Claim("it is better", names, metric, 20.0, against=against, **more)


def five_folds(name, *dice, **last):
    """Records of five folds with one patient each, p0 to p4; `last` is of the last one."""
    return [fold(name, i, {f"p{i}": one}, **(last if i == 4 else {})) for i, one in enumerate(dice)]


def test_patients_are_compared_one_by_one():
    one = five_folds("mri-folds-isounet", 92.0, 34.0, 66.0, 54.0, 64.0)
    other = five_folds("mri-folds-unet-bn", 90.0, 30.0, 60.0, 50.0, 60.0)
    found = judge(out_of_fold(), toy_records(*one, *other))
    # differences 2, 4, 6, 4, 4: mean 4, standard error sqrt(2 / 5), t of four degrees of freedom 2.77645
    half = 2.77645 * (2 / 5) ** 0.5
    assert found.interval == pytest.approx((4 - half, 4 + half), rel=1e-5)
    assert (found.n, found.basis, found.verdict) == ("5", "patients", "holds")


def test_some_folds_decide_nothing():
    one = five_folds("mri-folds-isounet", 92.0, 34.0, 66.0, 54.0, 64.0)
    other = five_folds("mri-folds-unet-bn", 12.0, 4.0, 6.0, 4.0)
    assert str(judge(out_of_fold(), toy_records(*one, *other))) == "undecided (4 of 5 folds)"
    assert str(judge(out_of_fold(against=1.0), toy_records(*one[:3]))) == "undecided (3 of 5 folds)"
    # a fold that diverged has no patients, nor has a record of the time before they were kept
    one[4] = fold("mri-folds-isounet", 4, {"p4": 64.0}, diverged=3)
    del one[3]["patients"]
    assert str(judge(out_of_fold(against=1.0), toy_records(*one))) == "undecided (3 of 5 folds)"


def test_detectors_with_one_seed_are_compared_on_draws_of_the_images():
    metric = Metric(dataset="coco_pbc_test", name="AP")
    pair = ["coco-scratch-risonet-fpn", "coco-scratch-resnet-fpn-bn"]
    records = [
        toy_record(name, final={"coco_pbc_test": {"AP": ap}}, resampled={"coco_pbc_test": {"AP": draws}})
        for name, ap, draws in zip(pair, (9.0, 7.0), ([8.0, 9.0, 10.0], [6.0, 7.0, 8.0]), strict=True)
    ]
    found = judge(Claim("it is better", pair, metric, 5.0), toy_records(*records))
    assert (found.verdict, found.basis, found.n, found.interval) == ("holds", "test images", "1", (2.0, 2.0))
    assert (
        judge(Claim("it is on par", pair[:1], metric, 5.0, against=1.0), toy_records(*records)).reason
        == "one seed"
    )


def test_the_table_says_that_draws_are_of_one_seed():
    large = "coco_pbc_chips_test_large"
    records = [
        toy_record(
            f"coco-chips-{net}", "cpu", final={large: {"AP50": ap}}, resampled={large: {"AP50": [ap, ap]}}
        )
        for net, ap in (("risonet", 30.0), ("resnet-bn", 20.0))
    ]
    row = next(
        line for line in verdict_table(toy_records(*records)).splitlines() if "30.0 against 20.0" in line
    )
    assert "| 1 seed, test images |" in row and "+10.0 to +10.0" in row


def test_a_claim_can_be_about_a_published_figure():
    folds = five_folds("mri-folds-isounet", 86.0, 88.0, 90.0, 88.0, 88.0)
    found = judge(out_of_fold(against=80.0), toy_records(*folds))
    half = 2.77645 * (2 / 5) ** 0.5
    assert found.interval == pytest.approx((8 - half, 8 + half), rel=1e-5) and found.verdict == "holds"
    assert judge(out_of_fold(against=92.0), toy_records(*folds)).verdict == "does not hold"
