"""What a training and its evaluations left in OUTPUT_DIR."""

import contextlib
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import yaml

from ..provenance import RUNS

# Tasks of Detectron2's and iso_d2's evaluators: their names in the results, and what stands first of each
HEADLINES = {
    "bbox": "AP",
    "segm": "AP",
    "keypoints": "AP",
    "sem_seg": "mIoU",
    "panoptic_seg": "PQ",
    "classification": "top1",
    "segmentation": "volume_dice_mean",
}
# What heads write in training; like the results they have a slash in their names
STATISTICS = ("fast_rcnn/", "mask_rcnn/", "keypoint_rcnn/", "kpts_num_skipped", "rpn/", "roi_head/")
LAYERS = ("ortho/", "isometry/")
# What has a chart of its own, is of no use afterwards, or is the same as another
UNSHOWN = ("lr", "loss_ortho", "eta_seconds", "rank_data_time")
RESULT = re.compile(rf"(?:(?P<data>.+?)/)?(?P<task>{'|'.join(HEADLINES)})/(?P<metric>.+)", re.S)
# Beyond these a chart's arithmetic would overflow: more is infinite, less is 0
LARGEST, SMALLEST = 1e300, 1e-300
OF_A_CLASS = re.compile(r"(?P<metric>AP|IoU|ACC|BoundaryIoU|min\(IoU, B-Iou\))-(?P<of>.+)", re.S)


class Result(NamedTuple):
    """A metric of an evaluation. ``of`` is a class, or "" for all."""

    key: str
    data: str
    task: str
    metric: str
    of: str


def read_metrics(folder):
    """The values that a training has written to metrics.json.

    Of a training that was resumed or started again the last values count. A line that is no JSON (a killed
    process was writing it) is left out.

    Returns:
        dict[str, dict[int, float]]: metric -> iteration -> value, which may be NaN; ascending iterations.

    Raises:
        FileNotFoundError: there is no metrics.json.
        ValueError: it has no value.
    """
    path = Path(folder, "metrics.json")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no metrics.json, so it is not the OUTPUT_DIR of a training, or of one that was "
            "stopped in its first 20 steps. Name the OUTPUT_DIR that the training had."
        )
    series = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        step = row.get("iteration") if isinstance(row, dict) else None
        if isinstance(step, int) and 0 <= step < 2**53:
            _add(series, row)
    if not any(series.values()):
        raise ValueError(
            f"{path} has no value: the training was stopped in its first 20 steps, or another program has "
            "written the file. Go on with the training (--resume), or name another OUTPUT_DIR."
        )
    return {key: dict(sorted(values.items())) for key, values in series.items()}


def _add(series, row):
    step = row["iteration"]
    # lines of one moment are in no order, but this one only goes back when a training starts again
    # the last one written is the greatest: those above a step that came again are gone
    if "total_loss" in row and next(reversed(series.get("total_loss", {})), -1) >= step:
        for values in series.values():
            for later in [s for s in values if s >= step]:
                del values[later]
    for key, value in row.items():
        if key != "iteration" and isinstance(value, (int, float)):
            if abs(value) > LARGEST:
                value = math.inf if value > 0 else -math.inf
            series.setdefault(key, {})[step] = 0.0 if abs(value) < SMALLEST else float(value)


def split(metrics):
    """Sort metrics by what they are.

    Returns:
        dict[str, list[str]]: the keys of ``losses``, ``results`` and ``statistics``.
    """
    kinds = {"losses": [], "results": [], "statistics": []}
    for key, values in metrics.items():
        if not values or key.startswith(LAYERS) or key in UNSHOWN:
            continue
        if re.fullmatch(r"(total_)?loss\w*", key):
            kinds["losses"].append(key)
        elif key.startswith(STATISTICS) or "/" not in key:
            kinds["statistics"].append(key)
        else:
            kinds["results"].append(key)
    kinds["losses"].sort(key=lambda key: key != "total_loss")
    return kinds


def parse_result(key):
    """Result: what the key of a metric of an evaluation says, such as "bbox/AP-person"."""
    found = RESULT.fullmatch(key)
    data, task, metric = found.groups() if found else (None, "", key)
    of = OF_A_CLASS.fullmatch(metric)
    return Result(key, data or "", task, of["metric"] if of else metric, of["of"] if of else "")


def is_better_low(metric):
    """Whether a small value of a metric is a good one."""
    return any(part in metric for part in ("loss", "false_alarm", "hd95"))


def unit(result):
    """str: of a Result: "%", "mm" or "", of losses and of evaluators of one's own."""
    if result.task not in HEADLINES or "loss" in result.metric:
        return ""
    return "mm" if "hd95" in result.metric else "%"


def best(values, metric):
    """(iteration, value): the best finite value of dict iteration -> value; None without one."""
    finite = [(step, value) for step, value in values.items() if math.isfinite(value)]
    if not finite:
        return None
    return (min if is_better_low(metric) else max)(finite, key=lambda pair: pair[1])


def layer_values(metrics):
    """What the run logged of its layers: singular values (IsometryHook) and the penalty.

    Returns:
        dict[str, dict]: layer -> ``before`` and ``after``, each a dict with ``iteration`` and, as far as
        logged, ``min``, ``max``, ``error`` and ``penalty``.
    """
    layers = {}
    for key, values in metrics.items():
        found = re.fullmatch(r"isometry/(.+)_(min|max|error)", key)
        if found and f"isometry/{found[1]}_error" not in metrics:  # thresholds of an SReLU
            continue
        name, what = found.groups() if found else (key.removeprefix("ortho/"), "penalty")
        if not values or not key.startswith(LAYERS) or key == "ortho/total":
            continue
        if not found and key.startswith("isometry/"):
            continue
        layer = layers.setdefault(name, {"before": {}, "after": {}})
        for when, step in (("before", min(values)), ("after", max(values))):
            layer[when][what] = values[step]
            layer[when]["iteration"] = step
    return layers


def read_json(path):
    """What a json file holds; None if it is not there, or is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return json.loads(Path(path).read_text(encoding="utf-8"))
    return None


def read_config(folder):
    """(text, dict[str, dict]): config.yaml of a run and its groups of keys, "" and {} without one."""
    try:
        text = Path(folder, "config.yaml").read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return "", {}
    groups = config.items() if isinstance(config, dict) else ()
    return text, {key: group for key, group in groups if isinstance(group, dict)}


def read_runs(folder):
    """list[dict]: how the run was started, each time; empty if it was not by ``iso-d2 train``."""
    runs = read_json(Path(folder, RUNS))
    return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []


def read_log(folder, lines=25):
    """str: the end of log.txt."""
    with contextlib.suppress(OSError):
        text = Path(folder, "log.txt").read_text(encoding="utf-8", errors="replace")
        return "\n".join(line[:400] for line in text.splitlines()[-lines:])
    return ""


def read_evaluations(folder):
    """dict[str, dict]: data set -> ``classification`` and ``segmentation``, the contents of these files."""
    found = {}
    for kind in ("classification", "segmentation"):
        for path in sorted(Path(folder, "inference").glob(f"*/{kind}.json")):
            content = read_json(path)
            if isinstance(content, dict):
                found.setdefault(path.parent.name, {})[kind] = content
    return found
