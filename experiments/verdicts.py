"""Whether the claims in tables/claims.yaml, most of them the report's, hold by what the records say."""

import statistics
from dataclasses import dataclass

from detectron2.config import CfgNode
from scipy import stats
from tabulate import tabulate

from .experiment import BY_NAME, SCALES, TABLES_FOLDER, Metric
from .record import mean_text, records_of, scores

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
CONFIDENCE = 0.95
RULE = (
    "The rule: a claim is judged at the largest scale at which both networks have been trained. It *holds* "
    f"if the whole {100 * CONFIDENCE:.0f} % confidence interval (Welch's) of the difference between the two "
    'means is on its side, and *does not hold* if the whole interval is on the other. The side of "better" '
    'and "help" begins at 0, that of "on par" at 1 point worse (Dice loss: 0.01). Everything else is '
    "*undecided*; so is a comparison with one seed, and one of networks of which neither has learned "
    "anything yet. A training that diverged counts as one that has learned nothing."
)


@dataclass(frozen=True)
class Claim:
    """That one experiment comes out better than another, or hardly worse."""

    claim: str  # in words
    experiments: list  # names of the one and of the other
    metric: Metric  # by which they are compared
    learned: float  # value of a network that has learned something
    report: str = ""  # what the report says; "" if the claim is not the report's
    margin: float = 0.0  # by how much the one may be worse


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim."""

    verdict: str  # HOLDS, FAILS or UNDECIDED
    reason: str  # why it is undecided
    scale: str = "-"  # of the runs
    values: tuple = ((), ())  # the metric of the one's seeds and of the other's

    def __str__(self):
        return f"{self.verdict} ({self.reason})" if self.reason else self.verdict


def read_claims():
    """list[Claim]: those of tables/claims.yaml."""
    entries = CfgNode.load_yaml_with_base(str(TABLES_FOLDER / "claims.yaml"))["claims"]
    return [Claim(metric=Metric(**entry.pop("measure")), **entry) for entry in entries]


def judge(claim, records):
    """Verdict: on a claim, by RULE; `records` is scale -> experiment -> list of records."""
    for scale in SCALES:
        found = [records_of(BY_NAME[name], scale, records) for name in claim.experiments]
        values = tuple(scores(group, claim.metric) for group in found)
        if all(values):
            break
    else:
        return Verdict(UNDECIDED, "not measured")
    sign = -1 if claim.metric.lower else 1
    if max(sign * statistics.mean(one) for one in values) <= sign * claim.learned:
        return Verdict(UNDECIDED, "neither has learned yet", scale, values)
    if min(map(len, values)) < 2:
        return Verdict(UNDECIDED, "one seed", scale, values)
    low, high = interval(*values)
    if claim.metric.lower:
        low, high = -high, -low
    if low >= -claim.margin:
        return Verdict(HOLDS, "", scale, values)
    if high < -claim.margin:
        return Verdict(FAILS, "", scale, values)
    return Verdict(UNDECIDED, "within the spread of the seeds", scale, values)


def interval(one, other):
    """tuple[float, float]: confidence interval of mean(one) - mean(other), of two or more values each.

    Welch's: the variances need not be equal.
    """
    difference = statistics.mean(one) - statistics.mean(other)
    if len(set(one)) == len(set(other)) == 1:
        return difference, difference
    return tuple(stats.ttest_ind(one, other, equal_var=False).confidence_interval(CONFIDENCE))


def verdict_table(records, short=False):
    """str: the claims, what the report says, what our runs say and the verdict, a table in markdown.

    `records` is as of `judge`. `short`: only what has been measured, without the column of the scale.
    """
    rows = []
    for claim in read_claims():
        verdict = judge(claim, records)
        ours = " against ".join(mean_text(values, claim.metric) for values in verdict.values)
        counts = dict.fromkeys(str(len(values)) for values in verdict.values)
        rows.append(
            {
                "claim": claim.claim,
                "the report": claim.report or "not in the report",
                "ours": claim.metric.unit.format(ours) if all(verdict.values) else "-",
                "scale": verdict.scale,
                "n": ", ".join(counts),
                "verdict": str(verdict),
            }
        )
    if short:
        rows = [row | {"ours": f"{row['ours']} ({row.pop('scale')})"} for row in rows if row["ours"] != "-"]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
