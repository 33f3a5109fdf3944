"""The record of a run: what was run, where, how it went and what came out."""

import datetime
import hashlib
import json
import logging
import math
import os
import re
import statistics

from detectron2.data import DatasetCatalog, MetadataCatalog

from iso_d2.files import write_atomically
from iso_d2.provenance import hardware, versions

from .experiment import BY_NAME, in_fold
from .isometry import isometry_of
from .models import parameters_and_flops
from .resampling import resampled_ap
from .run import command_text, configuration, read_metrics
from .training import COMMANDS

# Points of a learning curve that are kept beside those with an evaluation
CURVE_POINTS = 60
# What an evaluation leaves in OUTPUT_DIR/inference/<data set>
EVALUATION_FILES = ("classification.json", "segmentation.json")
# Names of the evaluators' results
TASKS = ("classification", "segmentation", "bbox")
# Settings of an evaluation, not measures
SETTINGS = ("smooth", "threshold", "largest_component")
# Values of a metrics.json that a curve keeps
CURVE_KEYS = re.compile(r"loss|total_loss|lr$|ortho/total$")

logger = logging.getLogger(__name__)


def write_record(run, diverged=None):
    """dict: the record of a run that has ended, which is written to ``run.record_file``.

    `diverged` is the iteration at which the loss was not finite any more. A ValueError says that the training
    left no metrics in the run's folder.
    """
    folder = run.root / run.folder
    lines = merged_lines(read_metrics(folder / "metrics.json"))
    if not lines and diverged is None:
        raise ValueError(f"{run.folder / 'metrics.json'} is missing or empty: the training wrote nothing")
    commands = json.loads((folder / COMMANDS).read_text())
    evaluations = evaluations_of(lines, list(run.config.DATASETS.TEST))
    final = {name: points[-1]["metrics"] for name, points in evaluations.items()}
    final.update(_evaluated_afterwards(folder, run.setting.evaluate))
    if diverged is not None:
        final = {}
    checkpoint = folder / "model_final.pth"
    parameters, flops = parameters_and_flops(run.config)
    record = {
        "experiment": run.experiment.name,
        "scale": run.scale,
        "label": run.experiment.label,
        "table": run.experiment.table,
        "setup": run.setting.setup,
        "seed": run.seed,
        "command": command_text(run.commands()[0]),
        "starts_from": run.start and os.path.basename(run.start),
        "commits": sorted({command["commit"] for command in commands}),
        "uncommitted_changes": any(command["dirty"] for command in commands),
        "versions": versions(),
        "hardware": hardware(run.config.MODEL.DEVICE, sorted({command["threads"] for command in commands})),
        "date": datetime.date.today().isoformat(),
        "wall_seconds": round(sum(command["seconds"] for command in commands), 1),
        "starts": len([command for command in commands if not command["evaluation_only"]]),
        "seconds_per_iteration": seconds_per_iteration(lines),
        "peak_memory_mb": max(command["peak_memory_mb"] for command in commands),
        "peak_gpu_memory_mb": _gpu_memory(folder / "log.txt"),
        "parameters": parameters,
        "flops": flops,
        "iterations": run.iterations,
        "batch": run.config.SOLVER.IMS_PER_BATCH,
        "dataset": run.train_set,
        "diverged_at": diverged,
        "final": final,
        "patients": {} if diverged is not None else _patients(folder, run.config.DATASETS.TEST),
        "resampled": _resampled(folder, final),
        "evaluations": evaluations,
        "curve": thin(lines),
        "isometry": isometry_of(lines),
        "checkpoint_sha256": _sha256(checkpoint) if checkpoint.is_file() else None,
        "configuration": configuration(run.config),
    }
    write_atomically(run.record_file, json.dumps(record, indent=1) + "\n")
    return record


def merged_lines(lines):
    """list[dict]: one an iteration, ordered; of what was trained again after a stop the later counts."""
    by_iteration = {}
    for line in lines:
        by_iteration.setdefault(line["iteration"], {}).update(line)
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def evaluations_of(lines, test_names):
    """dict[str, list[dict]]: data set -> ``iteration`` and ``metrics`` (by name) of its evaluations.

    With one of DATASETS.TEST, `test_names`, Detectron2 writes "bbox/AP", with several "<data set>/bbox/AP".
    """
    found = {}
    for line in lines:
        by_set = {}
        for key, value in line.items():
            *dataset, task, name = ["", *key.split("/")][-3:]
            if task in TASKS:
                by_set.setdefault(dataset[0] or test_names[0], {})[name] = value
        for dataset, metrics in by_set.items():
            found.setdefault(dataset, []).append({"iteration": line["iteration"], "metrics": metrics})
    return found


def seconds_per_iteration(lines):
    """float or None: median over the training of the medians that Detectron2 writes."""
    times = [line["time"] for line in lines if "time" in line]
    return round(statistics.median(times), 4) if times else None


def thin(lines):
    """list[dict]: at most 60 points of losses and learning rate, evenly spread, the last one among them."""
    points = [line for line in lines if "total_loss" in line]
    step = max(1, -(-len(points) // CURVE_POINTS))
    chosen = points[::-1][::step][::-1]
    return [
        {key: value for key, value in point.items() if key == "iteration" or CURVE_KEYS.match(key)}
        for point in chosen
    ]


def value_of(record, metric):
    """float or None: a metric of a run at its end; None if it diverged or has none."""
    if record["diverged_at"] is not None:
        return None
    dataset = in_fold(metric.dataset, record["seed"])
    if metric.last > 1:
        points = record["evaluations"].get(dataset, [])[-metric.last :]
        return statistics.mean(point["metrics"][metric.name] for point in points) if points else None
    if dataset:
        return record["final"].get(dataset, {}).get(metric.name)
    return task_loss(record["curve"][-1]) if record["curve"] else None


def scores(records, metric):
    """tuple[float]: a metric of the seeds of an experiment, to be compared.

    Of a training that diverged, and of one whose metric is not a number (the AP of a detector that finds
    nothing), it is 0, or 1 where lower is better. Records that do not have the metric are left out.
    """
    nothing = 1.0 if metric.lower else 0.0
    found = [nothing if record["diverged_at"] is not None else value_of(record, metric) for record in records]
    return tuple(nothing if math.isnan(value) else value for value in found if value is not None)


def patients_of(records):
    """dict[str, float]: patient -> volume Dice in percent out of fold; {} where there are no folds."""
    folds = [record for record in records if BY_NAME[record["experiment"]].folds]
    parts = [found for record in folds for found in record.get("patients", {}).values()]
    return {name: dice for part in parts for name, dice in part.items()}


def mean_text(values, metric):
    """str: the mean of some seeds, with the standard deviation if there are several; "-" without any."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{metric.digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{metric.digits}f}{spread}"


def task_loss(point):
    """float: the losses of a point of a curve, added up, but for the orthogonality penalty.

    Detectron2 names the losses only where there are several; a single one is in the total alone.
    """
    named = [value for key, value in point.items() if key.startswith("loss_") and key != "loss_ortho"]
    return sum(named) if named else point["total_loss"]


def records_of(experiment, scale, records):
    """list[dict]: the records of an experiment, or of the one whose result it shares at full scale."""
    name = experiment.same_as if experiment.same_as and scale == "full" else experiment.name
    return records.get(scale, {}).get(name, [])


def read_records(root, scale):
    """dict[str, list[dict]]: experiment -> its records at a scale, by seed; damaged ones are logged."""
    found = {}
    for path in sorted((root / "results" / "reproduction" / scale).glob("*.json")):
        try:
            record = json.loads(path.read_text())
            found.setdefault(record["experiment"], []).append(record)
        except (KeyError, TypeError, ValueError):
            logger.error("%s is damaged and left out: run its experiment again", path)
    return {name: sorted(records, key=lambda record: record["seed"]) for name, records in found.items()}


def _evaluated_afterwards(folder, dataset):
    for name in EVALUATION_FILES if dataset else ():
        path = folder / "inference" / dataset / name
        if path.is_file():
            content = json.loads(path.read_text())
            numbers = {key: value for key, value in content.items() if isinstance(value, (int, float))}
            return {dataset: {key: value for key, value in numbers.items() if key not in SETTINGS}}
    return {}


def _patients(folder, test_names):
    """dict[str, dict[str, float]]: data set -> patient -> volume Dice in percent, of sets with patients."""
    found = {name: folder / "inference" / name / "segmentation.json" for name in test_names}
    contents = {name: json.loads(path.read_text()) for name, path in found.items() if path.is_file()}
    return {
        name: {entry["patient"]: round(entry["dice"], 3) for entry in content["patients"]}
        for name, content in contents.items()
    }


def _resampled(folder, final):
    """dict[str, dict[str, list[float]]]: data set of boxes -> AP, AP50 -> percent on draws of its images.

    Chips of one image count as images, so that draws of a set with several of an image spread too little.
    """
    found = {}
    for dataset in [name for name, metrics in final.items() if "AP" in metrics]:
        try:
            DatasetCatalog.get(dataset)  # its metadata know the file afterwards
            results = folder / "inference" / dataset / "coco_instances_results.json"
            drawn = resampled_ap(MetadataCatalog.get(dataset).json_file, results)
        except (AttributeError, KeyError, OSError, ValueError) as error:
            logger.error("%s: no AP on draws of the images of %s: %s", folder, dataset, error)
            continue
        found[dataset] = {name: [round(value, 2) for value in values] for name, values in drawn.items()}
    return found


def _gpu_memory(log):
    if not log.is_file():
        return None
    found = re.findall(r"max_mem: (\d+)M", log.read_text(errors="replace"))
    return max(map(int, found)) if found else None


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
