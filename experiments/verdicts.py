"""Whether the claims in tables/claims.yaml, most of them the report's, hold by what the records say."""

import math
import statistics
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from scipy import stats
from tabulate import tabulate

from .experiment import BY_NAME, SCALES, TABLES, TABLES_FOLDER, Metric
from .record import mean_text, patients_of, records_of, scores

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
CONFIDENCE = 0.95
# What an interval comes from
SEEDS, POOLED, PATIENTS, IMAGES = "seeds", "pooled seeds", "patients", "test images"
RULE = (
    "The rule: a claim is judged at the largest scale at which both networks have been trained, by the "
    f"{100 * CONFIDENCE:.0f} % confidence interval of the difference between the two means. It *holds* if "
    "the whole interval is on its side, and *does not hold* if the whole interval is on the other. The side "
    'of "better", "help" and "reaches" begins at 0, that of "on par" at 1 point worse (Dice loss: 0.01). '
    "Everything else is *undecided*; so is a comparison of networks of which neither has learned anything "
    f"yet. The interval comes from, in this order: *{PATIENTS}*, their differences out of fold (paired t), "
    f"which says nothing of other trainings, and takes a published mean as exact; *{SEEDS}*, two or more on "
    f"both sides (Welch's t); *{POOLED}*, if one side has a single seed: the variance between seeds of all "
    "experiments of that table that have several, pooled, which supposes that the seeds of all of them "
    f"spread alike; *{IMAGES}*, if there are none, of detectors: 200 draws of the test images, the same for "
    "both (bootstrap), which says nothing of other seeds. A training that diverged counts as one that has "
    "learned nothing."
)


@dataclass(frozen=True)
class Claim:
    """That one experiment comes out better than another, or hardly worse, or than a published figure."""

    claim: str  # in words
    experiments: list  # names of the one and of the other, if there is another
    metric: Metric  # by which they are compared
    learned: float  # value of a network that has learned something
    report: str = ""  # what the report says; "" if the claim is not the report's
    front: bool = False  # whether the README has it
    margin: float = 0.0  # by how much the one may be worse
    against: float | None = None  # the figure with which a single experiment is compared


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim."""

    verdict: str  # HOLDS, FAILS or UNDECIDED
    reason: str  # why it is undecided
    scale: str = "-"  # of the runs
    values: tuple = ((), ())  # the metric of the one's seeds and of the other's
    interval: tuple = ()  # of the difference, positive where the one is better; () without
    basis: str = ""  # what the interval comes from
    n: str = ""  # how many of these

    def __str__(self):
        return f"{self.verdict} ({self.reason})" if self.reason else self.verdict


def read_claims():
    """list[Claim]: those of tables/claims.yaml."""
    entries = CfgNode.load_yaml_with_base(str(TABLES_FOLDER / "claims.yaml"))["claims"]
    return [Claim(metric=Metric(**entry.pop("measure")), **entry) for entry in entries]


def judge(claim, records):
    """Verdict: on a claim, by RULE; `records` is scale -> experiment -> list of records."""
    for scale in SCALES:
        sides = [records_of(BY_NAME[name], scale, records) for name in claim.experiments]
        values = [scores(side, claim.metric) for side in sides]
        if claim.against is not None:
            values.append((claim.against,))
        if all(values):
            break
    else:
        return Verdict(UNDECIDED, "not measured")
    made = {"scale": scale, "values": tuple(values)}
    sign = -1 if claim.metric.lower else 1
    if max(sign * statistics.mean(one) for one in values) <= sign * claim.learned:
        return Verdict(UNDECIDED, "neither has learned yet", **made)
    folds = BY_NAME[claim.experiments[0]].folds
    if folds and (done := min(map(_folds_with_patients, sides))) < folds:
        return Verdict(UNDECIDED, f"{done} of {folds} folds", **made)
    difference = _difference(claim, scale, records, sides, values)
    if difference is None:
        return Verdict(UNDECIDED, "one seed", **made)
    (low, high), made["basis"], made["n"] = difference
    low, high = made["interval"] = (low, high) if sign > 0 else (-high, -low)
    if low >= -claim.margin:
        return Verdict(HOLDS, "", **made)
    if high < -claim.margin:
        return Verdict(FAILS, "", **made)
    return Verdict(UNDECIDED, "within the spread", **made)


def _difference(claim, scale, records, sides, values):
    """Interval of the one minus the other, what it comes from and how many these are; None without spread."""
    if BY_NAME[claim.experiments[0]].folds:
        one, *others = map(patients_of, sides)
        other = others[0] if others else dict.fromkeys(one, claim.against)
        differences = [one[name] - other[name] for name in one.keys() & other.keys()]
        return mean_interval(differences), PATIENTS, str(len(differences))
    counts = ", ".join(dict.fromkeys(str(len(one)) for one in values))
    if min(map(len, values)) > 1:
        return interval(*values), SEEDS, counts
    if claim.against is not None:
        return None
    table = next(table for table in TABLES if table.name == BY_NAME[claim.experiments[0]].table)
    groups = [scores(records_of(one, scale, records), claim.metric) for one in table.experiments]
    if found := pooled_interval(*values, [group for group in groups if len(group) > 1]):
        return found, POOLED, counts
    found = paired_interval(*sides, claim.metric)
    return found and (found, IMAGES, counts)


def _folds_with_patients(records):
    """int: how many folds have ended and hold patients; one that diverged has none to compare."""
    return sum(record["diverged_at"] is None and bool(record.get("patients")) for record in records)


def interval(one, other):
    """tuple[float, float]: confidence interval of mean(one) - mean(other), of two or more values each.

    Welch's: the variances need not be equal.
    """
    difference = statistics.mean(one) - statistics.mean(other)
    if len(set(one)) == len(set(other)) == 1:
        return difference, difference
    return tuple(stats.ttest_ind(one, other, equal_var=False).confidence_interval(CONFIDENCE))


def pooled_interval(one, other, groups):
    """tuple[float, float]: as `interval`, for one or more values each, with the variance within `groups`.

    Each of these has two or more values. The standard error is sqrt(s^2 / n + s^2 / m) with the pooled
    variance s^2 and t has its degrees of freedom, the sum of (values - 1). None without groups.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    variance = sum((len(group) - 1) * statistics.variance(group) for group in groups) / freedom
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance / len(one) + variance / len(other))
    difference = statistics.mean(one) - statistics.mean(other)
    return difference - half, difference + half


def mean_interval(values):
    """tuple[float, float]: confidence interval of a mean, Student's t; two or more values."""
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
    return mean - half, mean + half


def paired_interval(one, other, metric):
    """tuple[float, float]: percentile bootstrap interval of the difference of two detectors' AP or AP50.

    `one` and `other` are records, one a seed; on each draw of the test images, the same for all, their means
    are compared. It holds for these trained networks on other test images: of other seeds it says nothing.
    None if a side is empty or a record has no draws, as that of a training that diverged, or not as many.
    """
    drawn = [
        [record.get("resampled", {}).get(metric.dataset, {}).get(metric.name, []) for record in records]
        for records in (one, other)
    ]
    numbers = {len(values) for side in drawn for values in side}
    if not all(drawn) or len(numbers) > 1 or 0 in numbers:
        return None
    difference = np.mean(drawn[0], axis=0) - np.mean(drawn[1], axis=0)
    outside = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(difference, [outside, 1 - outside]).tolist()
    return low, high


def verdict_table(records, short=False):
    """str: the claims, what the report says, what our runs say and the verdict, a table in markdown.

    `records` is as of `judge`. `short`: only the measured claims that are marked for the README.
    """
    rows = []
    for claim in read_claims():
        verdict = judge(claim, records)
        measured, digits = all(verdict.values), claim.metric.digits
        ours = " against ".join(mean_text(values, claim.metric) for values in verdict.values)
        row = {
            "claim": claim.claim,
            "the report": claim.report or "not in the report",
            "ours": claim.metric.unit.format(ours) if measured else "-",
            "scale": verdict.scale,
            "n": f"{verdict.n} {'seed, ' if verdict.basis == IMAGES else ''}{verdict.basis}".strip() or "-",
            "difference": " to ".join(f"{value:+.{digits}f}" for value in verdict.interval) or "-",
            "verdict": str(verdict),
        }
        if not short or (claim.front and measured):
            rows.append(row)
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
