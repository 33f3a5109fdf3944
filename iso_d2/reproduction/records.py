"""One json a run: what was run, where, how it went and what came out."""

import datetime
import hashlib
import json
import logging
import os
import re
import statistics

from ..files import write_atomically
from ..provenance import hardware, versions
from .cost import parameters_and_flops
from .files import command_text, read_metrics

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


def write_record(job, diverged=None):
    """Write the record of a job that has ended.

    Args:
        job (Job): its folder holds what the training left.
        diverged (int or None): iteration at which the loss was not finite any more.

    Returns:
        dict: what was written to ``job.result_file``.

    Raises:
        ValueError: the training left no metrics.
    """
    folder = job.root / job.folder
    lines = merged_lines(read_metrics(folder / "metrics.json"))
    if not lines and diverged is None:
        raise ValueError(f"{job.folder / 'metrics.json'} is missing or empty: the training wrote nothing")
    parts = json.loads((folder / "parts.json").read_text())
    evaluations = evaluations_of(lines, list(job.config.DATASETS.TEST))
    final = {name: points[-1]["metrics"] for name, points in evaluations.items()}
    final.update(_evaluated_afterwards(folder, job.run.evaluate))
    checkpoint = folder / "model_final.pth"
    parameters, flops = parameters_and_flops(job.config)
    record = {
        "arm": job.arm.name,
        "scale": job.scale,
        "label": job.arm.label,
        "net": job.run.net,
        "table": job.arm.table,
        "setup": job.run.setup,
        "seed": job.seed,
        "command": command_text(job.commands()[0]),
        "config": job.run.config,
        "options": list(job.run.options),
        "starts_from": job.start and os.path.basename(job.start),
        "commits": sorted({part["commit"] for part in parts}),
        "uncommitted_changes": any(part["dirty"] for part in parts),
        "versions": versions(),
        "hardware": hardware(job.config.MODEL.DEVICE, sorted({part["threads"] for part in parts})),
        "date": datetime.date.today().isoformat(),
        "wall_seconds": round(sum(part["seconds"] for part in parts), 1),
        "parts": len([part for part in parts if not part["evaluation_only"]]),
        "seconds_per_iteration": seconds_per_iteration(lines),
        "peak_memory_mb": max(part["peak_memory_mb"] for part in parts),
        "peak_gpu_memory_mb": _gpu_memory(folder / "log.txt"),
        "parameters": parameters,
        "flops": flops,
        "iterations": job.iterations,
        "batch": job.config.SOLVER.IMS_PER_BATCH,
        "dataset": job.config.DATASETS.TRAIN[0],
        "diverged_at": diverged,
        "final": {} if diverged is not None else final,
        "evaluations": evaluations,
        "curve": thin(lines),
        "checkpoint_sha256": _sha256(checkpoint) if checkpoint.is_file() else None,
    }
    write_atomically(job.result_file, json.dumps(record, indent=1) + "\n")
    return record


def merged_lines(lines):
    """list[dict]: one an iteration, ordered; of what was trained again after a stop the later counts."""
    by_iteration = {}
    for line in lines:
        by_iteration.setdefault(line["iteration"], {}).update(line)
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def evaluations_of(lines, test_names):
    """The evaluations in a training's metrics.

    With one of DATASETS.TEST Detectron2 writes "bbox/AP", with several "<data set>/bbox/AP".

    Args:
        lines (list[dict]): of metrics.json.
        test_names (list[str]): DATASETS.TEST.

    Returns:
        dict[str, list[dict]]: data set -> ``iteration`` and ``metrics`` (by name, without the task).
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


def read_records(root, scale):
    """dict[str, list[dict]]: arm -> its records at a scale, by seed; a damaged one is named and left out."""
    found = {}
    for path in sorted((root / "results" / "reproduction" / scale).glob("*.json")):
        try:
            record = json.loads(path.read_text())
            found.setdefault(record["arm"], []).append(record)
        except (KeyError, TypeError, ValueError):
            logger.error("%s is damaged and left out: run its arm again", path)
    return {name: sorted(records, key=lambda record: record["seed"]) for name, records in found.items()}


def _evaluated_afterwards(folder, dataset):
    for name in EVALUATION_FILES if dataset else ():
        path = folder / "inference" / dataset / name
        if path.is_file():
            content = json.loads(path.read_text())
            numbers = {key: value for key, value in content.items() if isinstance(value, (int, float))}
            return {dataset: {key: value for key, value in numbers.items() if key not in SETTINGS}}
    return {}


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
