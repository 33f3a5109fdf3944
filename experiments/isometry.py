"""What a run's metrics.json says of its layers' isometry, in a few numbers an analysed step."""

import re

import numpy as np

# Ends of the names that iso_d2.analysis.record_step gives. Those of an SReLU's thresholds are as those of a
# convolution's singular values; what has no such end is a residual scale.
ENDS = ("mean_square", "held", "error", "near", "min", "mean", "max", "signal", "gradient")
NAME = re.compile(rf"isometry/(?P<layer>.+?)(?:_(?P<what>{'|'.join(ENDS)}))?")


def isometry_of(lines):
    """list[dict]: one entry for each line of a metrics.json with values under ``isometry/``.

    Its values have four digits. Over the convolutions, strided ones among them, but for the stem, which the
    penalty leaves out and which may be fixed: ``sigma_max_median`` and ``sigma_max`` (median and maximum of
    the largest singular values), ``sigma_min_median``, ``error_median`` (of max |sigma - 1|) and
    ``near_mean`` (of the share of singular values from 0.5 to 1.5). A centred kernel has a singular value 0
    by design, so that its error is at least 1. Where there are SReLUs: ``held_mean`` and
    ``threshold_mean``, ``threshold_min``, ``threshold_max``, the share of clipped values, 0 to 1, and the
    thresholds. Where there are residual scales: ``scale_mean``. ``gradient_first``: norm of the gradient in
    the output of the stem or, without one, of the first block by name, divided by that in the last.

    Args:
        lines (list[dict]): one an iteration.
    """
    found = ((line["iteration"], _by_kind(line)) for line in lines)
    return [{"iteration": iteration, **_summary(kinds)} for iteration, kinds in found if kinds]


def _by_kind(line):
    """dict[str, dict]: kind of a value ("scale" of a residual scale) -> layer -> value; empty without any."""
    kinds = {}
    for key, value in line.items():
        if match := NAME.fullmatch(key):
            kinds.setdefault(match["what"] or "scale", {})[match["layer"]] = value
    return kinds


def _summary(kinds):
    convs = {name: value for name, value in kinds.get("error", {}).items() if "stem" not in name}
    srelus, near = kinds.get("held", {}), kinds.get("near", {})
    low, mean, high = (kinds.get(what, {}) for what in ("min", "mean", "max"))
    # By name, "stem" comes after "res2"
    blocks = sorted(kinds.get("gradient", {}).items(), key=lambda item: ("stem" not in item[0], item[0]))
    values = {
        "sigma_max_median": (np.median, [high[name] for name in convs]),
        "sigma_max": (np.max, [high[name] for name in convs]),
        "sigma_min_median": (np.median, [low[name] for name in convs]),
        "error_median": (np.median, list(convs.values())),
        "near_mean": (np.mean, [near[name] for name in convs if name in near]),
        "held_mean": (np.mean, list(srelus.values())),
        "threshold_mean": (np.mean, [mean[name] for name in srelus]),
        "threshold_min": (np.min, [low[name] for name in srelus]),
        "threshold_max": (np.max, [high[name] for name in srelus]),
        "scale_mean": (np.mean, list(kinds.get("scale", {}).values())),
        "gradient_first": (np.mean, [value for _, value in blocks[:1]]),
    }
    return {name: float(f"{over(of):.4g}") for name, (over, of) in values.items() if of}
