"""Whether the claims in tables/claims.yaml, most of them the report's, hold by what the records say."""

import math
import statistics
from dataclasses import dataclass

from detectron2.config import CfgNode
from scipy import stats
from tabulate import tabulate

from .experiment import BY_NAME, SCALES, TABLES_FOLDER, Metric
from .record import mean_text, records_of, value_of

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
    """That one experiment comes out better than another, or hardly worse.

    Args:
        claim (str): in words.
        experiments (list[str]): names of the one and of the other.
        metric (Metric): by which they are compared.
        unit (str): how its values are written, with {} in their place.
        lower (bool): whether lower values are better.
        learned (float): value of a network that has learned something.
        report (str): what the report says; "" if the claim is not the report's.
        margin (float): by how much the one may be worse.
    """

    claim: str
    experiments: list
    metric: Metric
    unit: str
    lower: bool
    learned: float
    report: str = ""
    margin: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim.

    Args:
        verdict (str): HOLDS, FAILS or UNDECIDED.
        reason (str): why it is undecided.
        scale (str): of the runs; "-" for none.
        values (tuple): the metric of the one's seeds and of the other's.
    """

    verdict: str
    reason: str
    scale: str = "-"
    values: tuple = ((), ())

    def __str__(self):
        return f"{self.verdict} ({self.reason})" if self.reason else self.verdict


def read_claims():
    """list[Claim]: those of tables/claims.yaml."""
    claims = []
    for entry in CfgNode.load_yaml_with_base(str(TABLES_FOLDER / "claims.yaml"))["claims"]:
        measure = dict(entry.pop("measure"))
        unit, lower = measure.pop("unit"), measure.pop("lower", False)
        claims.append(Claim(metric=Metric(**measure), unit=unit, lower=lower, **entry))
    return claims


def judge(claim, records):
    """Judge a claim by RULE.

    Args:
        claim (Claim): what is claimed.
        records (dict): scale -> experiment -> list of records.

    Returns:
        Verdict
    """
    for scale in SCALES:
        values = tuple(_values(claim, BY_NAME[name], scale, records) for name in claim.experiments)
        if all(values):
            break
    else:
        return Verdict(UNDECIDED, "not measured")
    sign = -1 if claim.lower else 1
    if max(sign * statistics.mean(one) for one in values) <= sign * claim.learned:
        return Verdict(UNDECIDED, "neither has learned yet", scale, values)
    if min(map(len, values)) < 2:
        return Verdict(UNDECIDED, "one seed", scale, values)
    low, high = interval(*values)
    if claim.lower:
        low, high = -high, -low
    if low >= -claim.margin:
        return Verdict(HOLDS, "", scale, values)
    if high < -claim.margin:
        return Verdict(FAILS, "", scale, values)
    return Verdict(UNDECIDED, "within the spread of the seeds", scale, values)


def interval(one, other):
    """Confidence interval of a difference between two means, without assuming equal variances (Welch).

    Args:
        one, other (sequence of float): at least two values each.

    Returns:
        tuple: float, float, around ``mean(one) - mean(other)``.
    """
    difference = statistics.mean(one) - statistics.mean(other)
    parts = [statistics.variance(values) / len(values) for values in (one, other)]
    if not sum(parts):
        return difference, difference
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)
    )
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(sum(parts))
    return difference - half, difference + half


def verdict_table(records, short=False):
    """The claims, what the report says, what our runs say and the verdict.

    Args:
        records (dict): scale -> experiment -> list of records.
        short (bool): only what has been measured, and without the column of the scale.

    Returns:
        str: a table in markdown.
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
                "ours": claim.unit.format(ours) if all(verdict.values) else "-",
                "scale": verdict.scale,
                "n": ", ".join(counts),
                "verdict": str(verdict),
            }
        )
    if short:
        rows = [row | {"ours": f"{row['ours']} ({row.pop('scale')})"} for row in rows if row["ours"] != "-"]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _values(claim, experiment, scale, records):
    """tuple[float]: one a seed."""
    nothing = 1.0 if claim.lower else 0.0
    found = records_of(experiment, scale, records)
    values = [(record, value_of(record, claim.metric)) for record in found]
    # A detector that finds nothing has an AP of NaN.
    return tuple(
        nothing if record["diverged_at"] is not None or math.isnan(value) else value
        for record, value in values
        if record["diverged_at"] is not None or value is not None
    )
