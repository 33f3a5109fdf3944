"""The page: what was read becomes charts, tables and pictures, and these become HTML."""

import base64
import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import jinja2

from ..files import write_atomically
from . import reading
from .charts import layer_chart, line_chart, number
from .pictures import read_pictures
from .tables import (
    class_table,
    classification_tables,
    described,
    layer_table,
    patient_table,
    result_table,
    run_tables,
)

HERE = Path(__file__).parent
# Losses of more curves than can be told apart go to several charts
CURVES = 7
# Parts of the results of a medical segmentation that have charts of their own, by a part of the name
PARTS = {
    "hd95": "95 % Hausdorff distance of patients",
    "volume_dice": "volume Dice of patients",
    "slice_": "masks of slices",
    "_rate": "slices by presence",
}


class Tile(NamedTuple):
    """A number at the top of the page."""

    label: str
    value: str
    more: str


def write_report(folder, path=None, layers=None):
    """Write the page of a run.

    Args:
        folder (str or Path): OUTPUT_DIR of a training.
        path (str or Path or None): the file; None: report.html in the folder.
        layers (dict or None): singular values as from :func:`~iso_d2.reporting.reading.layer_values`, for a
            run that logged none.

    Returns:
        Path: the file.

    Raises:
        FileNotFoundError, ValueError: there is no training in the folder, see
            :func:`~iso_d2.reporting.reading.read_metrics`.
    """
    path = Path(path or Path(folder, "report.html"))
    write_atomically(path, render(folder, layers))
    return path


def render(folder, layers=None):
    """str: the page, see :func:`write_report`."""
    folder = Path(folder)
    metrics = reading.read_metrics(folder)
    kinds = reading.split(metrics)
    results = [reading.parse_result(key) for key in kinds["results"]]
    overall = [r for r in results if not r.of]
    text, config = reading.read_config(folder)
    evaluations = reading.read_evaluations(folder)
    found = reading.layer_values(metrics)
    for name, layer in (layers or {}).items():
        for when in ("before", "after"):
            logged = found.setdefault(name, {"before": {}, "after": {}})[when]
            logged |= layer[when]

    last = max(step for values in metrics.values() for step in values)
    style, script = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    name = folder.resolve().name
    by_data = {}
    for data, content in evaluations.items():
        by_data[data] = [
            *classification_tables(content.get("classification")),
            *patient_table(content.get("segmentation")),
        ]
    return environment.get_template("page.html.j2").render(
        name=name,
        style=style,
        script=script,
        digest=digest,
        status=_status(folder, config, last),
        data={key: _names(config, key) for key in ("TRAIN", "TEST")},
        tiles=[*_headlines(overall, metrics), *_tiles(metrics, last)],
        results=[*result_table(overall, metrics), *class_table(results, metrics)],
        result_charts=_result_charts(overall, metrics),
        evaluations={data: tables for data, tables in by_data.items() if tables},
        galleries=[{**g, "measure": _measure(evaluations.get(g["data"], {}))} for g in read_pictures(folder)],
        charts=_charts(kinds, metrics),
        layer_chart=layer_chart("Singular values by layer", _short(found)),
        layer_table=layer_table(_short(found)),
        runs=run_tables(reading.read_runs(folder)),
        config=text,
        log=reading.read_log(folder),
    )


def _status(folder, config, last):
    """(kind, text): whether the training came to its end."""
    if (folder / "model_final.pth").is_file():
        return "done", "finished"
    solver = config.get("SOLVER", {})
    planned = solver.get("MAX_ITER") if not solver.get("EPOCHS") else None
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    return "open", f"not finished: iteration {last:,}{of} is the last in its metrics, no model_final.pth"


def _names(config, key):
    names = config.get("DATASETS", {}).get(key) or ()
    return ", ".join(map(str, names if isinstance(names, (list, tuple)) else [names]))


def _headlines(overall, metrics):
    for result in overall:
        if reading.HEADLINES.get(result.task) == result.metric:
            values = metrics[result.key]
            step, value = list(values.items())[-1]
            text, of = described(result), f" on {result.data}" if result.data else ""
            yield Tile(f"{text}{of}", f"{number(value)} %", f"at iteration {step:,}")


def _tiles(metrics, last):
    yield Tile("iterations", f"{last:,}", "the last in metrics.json")
    if losses := metrics.get("total_loss"):
        first, *_, final = [*losses.values()] * 2
        yield Tile("total loss", number(final), f"from {number(first)} at iteration {min(losses):,}")
    if times := sorted(t for t in metrics.get("time", {}).values() if math.isfinite(t)):
        typical = times[len(times) // 2]
        yield Tile("seconds a step", number(typical), f"{number(typical * last / 60)} minutes for all steps")


def _result_charts(overall, metrics):
    """Charts of the metrics of each data set and task that were measured more than once."""
    groups = {}
    for result in overall:
        if len(metrics[result.key]) > 1:
            is_loss = "loss" in result.metric
            part = next((name for what, name in PARTS.items() if what in result.metric), "")
            groups.setdefault((result.data, result.task, part, is_loss), []).append(result)
    charts = []
    for (data, task, what, is_loss), group in groups.items():
        unit = reading.unit(group[0])
        title = " · ".join(filter(None, [data, what or task or "metrics", "loss" if is_loss else ""]))
        group.sort(key=lambda r: r.metric != reading.HEADLINES.get(r.task))
        for part in range(0, len(group), CURVES):
            named = {described(r): metrics[r.key] for r in group[part : part + CURVES]}
            named = {name: values for name, values in named.items() if _any_finite(values)}
            charts.append(line_chart(title, named, unit, logarithmic=False))
    return [chart for chart in charts if chart]


def _any_finite(values):
    return any(map(math.isfinite, values.values()))


def _charts(kinds, metrics):
    charts = []
    for part in range(0, len(kinds["losses"]), CURVES):
        named = {key: metrics[key] for key in kinds["losses"][part : part + CURVES]}
        charts.append(line_chart("Losses", named, "loss", note="Medians of 20 steps, as logged."))
    if "ortho/total" in metrics:
        note = "Sum over the layers, without its coefficient."
        charts.append(line_chart("Penalty", {"ortho/total": metrics["ortho/total"]}, "penalty", note=note))
    if "loss_ortho" in metrics:
        named = {"loss_ortho": metrics["loss_ortho"]}
        note = "With its coefficient, as it is added to the losses of a step."
        charts.append(line_chart("Penalty in the loss", named, "loss", note=note))
    if "lr" in metrics:
        charts.append(line_chart("Learning rate", {"lr": metrics["lr"]}, "rate", logarithmic=False))
    by_kind = {}
    for key in kinds["statistics"]:
        unit = "s" if key.endswith("time") else "number" if "num_" in key else "share"
        by_kind.setdefault(unit, []).append(key)
    titles = {"s": "Time of a step", "number": "Samples of the heads", "share": "Shares in training"}
    for unit, keys in by_kind.items():
        for part in range(0, len(keys), CURVES):
            named = {key: metrics[key] for key in keys[part : part + CURVES]}
            charts.append(line_chart(titles[unit], named, unit, logarithmic=False))
    return [chart for chart in charts if chart]


def _short(layers):
    """The layers without the dotted part that all names begin with."""
    parts = [name.split(".")[:-1] for name in layers]
    common = 0
    while parts and all(len(p) > common and p[common] == parts[0][common] for p in parts):
        common += 1
    short = {".".join(name.split(".")[common:]): layer for name, layer in layers.items()}
    # in the log they stand by the alphabet
    return dict(sorted(short.items(), key=lambda item: not item[0].startswith(("stem", "encoder"))))


def _measure(content):
    """str: what the error of a picture is."""
    if "classification" in content:
        return "1 − probability of the true class"
    if "segmentation" in content:
        return "1 − volume Dice of the patient"
    return "1 − F1 of the boxes (same class, IoU from 0.5, score from 0.5), or the share of wrong pixels"
