"""What was read, as tables: numbers keep their values, so that the page's script can sort by them."""

import math
import re
from typing import NamedTuple

from .charts import number
from .reading import HEADLINES, best, is_better_low, unit

# A confusion matrix of more classes is not readable on a page
MOST_CLASSES = 40
MOST_PAIRS = 20
# What a metric's own name does not say
NAMES = {
    "AP": "AP, IoU 0.50 to 0.95",
    "AP50": "AP at IoU 0.50",
    "AP75": "AP at IoU 0.75",
    "APs": "AP of small objects",
    "APm": "AP of medium objects",
    "APl": "AP of large objects",
    "mIoU": "mean IoU of classes",
    "fwIoU": "IoU weighted by frequency",
    "mACC": "mean accuracy of classes",
    "pACC": "accuracy of pixels",
    "PQ": "panoptic quality",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "classification/loss": "mean cross entropy",
    "dice_loss": "soft Dice loss",
    "mean_iou": "soft IoU",
    "slice_dice": "Dice",
    "slice_iou": "IoU",
    "hd95_mean": "95 % Hausdorff distance in mm, mean",
    "hd95_median": "95 % Hausdorff distance in mm, median",
    "detection_rate": "tumour slices detected",
    "false_alarm_rate": "tumour-free slices with false alarm",
}


class Cell(NamedTuple):
    """Of a table: ``value`` is a number to sort by, None for text; ``bar``, 0 to 1, is drawn behind it."""

    text: str
    value: float | None = None
    bar: float | None = None


class Table(NamedTuple):
    """``head`` has (name, whether it is a column of numbers); ``confusion`` says that the bars are shades."""

    title: str
    head: list
    rows: list
    note: str = ""
    confusion: bool = False


def cell(value, text=None, bar=None):
    """Cell: of a number, which may be None or not finite."""
    if value is None:
        return Cell("–", -math.inf)
    return Cell(number(value) if text is None else text, value if math.isfinite(value) else -math.inf, bar)


def described(result):
    """str: the name of a metric."""
    name = result.metric.removesuffix("_tumour")
    if name in NAMES:
        task = f"{result.task} " if result.task in ("bbox", "segm", "keypoints") else ""
        of = ", tumour slices" if name != result.metric else ""
        return f"{task}{NAMES[name]}{of}"
    name = re.sub(r"^volume_dice_", "volume Dice, ", result.metric)
    return NAMES.get(f"{result.task}/{name}", name.replace("_", " "))


def result_table(overall, metrics):
    """list[Table]: last and best value of each metric that is not of one class; empty without any."""
    if not overall:
        return []
    several = any(len(metrics[r.key]) > 1 for r in overall)
    has_data = any(r.data for r in overall)
    rows = []
    for result in overall:
        values = metrics[result.key]
        step, value = list(values.items())[-1]
        row = [Cell(result.data)] if has_data else []
        exists = any(map(math.isfinite, values.values()))
        row += [Cell(described(result)), _percent(value, result) if exists else cell(None)]
        row.append(cell(step, f"{step:,}"))
        if several:
            at, top = best(values, result.metric) or (None, None)
            row += [_percent(top, result), cell(at, None if at is None else f"{at:,}")]
        rows.append(row)
    head = [("data set", False)] if has_data else []
    head += [("metric", False), ("last", True), ("iteration", True)]
    head += [("best", True), ("at iteration", True)] if several else []
    lower = [described(r) for r in overall if is_better_low(r.metric)]
    known = any(r.task in HEADLINES for r in overall)
    note = "All but losses and distances are in percent, more is better." if known else ""
    if lower:
        note += f" Less is better: {', '.join(dict.fromkeys(lower))}."
    return [Table("Last evaluation", head, rows, note.strip())]


def _percent(value, result):
    """Cell: two decimals for the measures in percent."""
    if value is None or not math.isfinite(value) or unit(result) != "%":
        return cell(value)
    return cell(value, f"{value:.2f}")


def class_table(results, metrics):
    """list[Table]: the last values of the metrics of single classes; empty without any."""
    columns, rows = {}, {}
    for result in results:
        if result.of:
            column = " ".join(filter(None, [result.data, result.task, result.metric]))
            columns[column] = None
            rows.setdefault(result.of, {})[column] = list(metrics[result.key].values())[-1]
    if not rows:
        return []
    head = [("class", False), *((column, True) for column in columns)]
    body = [
        [Cell(of), *(cell(row.get(c), bar=_share(row.get(c), 100)) for c in columns)]
        for of, row in rows.items()
    ]
    return [Table("By class", head, body, "In percent.")]


def classification_tables(content):
    """list[Table]: of classification.json: confusion matrix, accuracy and confusions of the classes."""
    try:
        matrix = [[int(count) for count in row] for row in content["confusion_matrix"]]
        classes = [str(name) for name in content["class_accuracy"]]
        pairs = list(zip(classes, matrix, strict=True))
        if any(len(row) != len(classes) for row in matrix):
            return []
        if any(not 0 <= count < 2**53 for row in matrix for count in row):
            return []
    except (KeyError, OverflowError, TypeError, ValueError):
        return []
    tables = []
    if len(classes) <= MOST_CLASSES:
        head = [("true ↓ predicted →", False), *((name, True) for name in classes)]
        rows = [
            [Cell(name), *(cell(count, str(count), _share(count, sum(row)) or 0.0) for count in row)]
            for name, row in pairs
        ]
        note = "Images. The shade is the share of the true class."
        tables.append(Table("Confusion matrix", head, rows, note, confusion=True))
    rows = []
    for i, (name, row) in enumerate(pairs):
        wrong = [count * (j != i) for j, count in enumerate(row)]
        most = max(range(len(row)), key=wrong.__getitem__)
        share = _share(row[i], sum(row))
        confused = f"{classes[most]} ({wrong[most]})" if wrong[most] else "–"
        accuracy = cell(None if share is None else 100 * share, bar=share)
        rows.append([Cell(name), cell(sum(row), str(sum(row))), accuracy, Cell(confused)])
    rows.sort(key=lambda row: row[2].value)
    head = [("class", False), ("images", True), ("accuracy, %", True), ("mostly taken for", False)]
    tables.append(Table("Classes from worst to best", head, rows))
    if len(classes) > MOST_CLASSES:
        confusions = [
            (count, name, classes[j])
            for i, (name, row) in enumerate(pairs)
            for j, count in enumerate(row)
            if i != j and count
        ]
        rows = [
            [Cell(true), Cell(taken), cell(count, str(count))]
            for count, true, taken in sorted(confusions, reverse=True)[:MOST_PAIRS]
        ]
        head = [("true class", False), ("predicted", False), ("images", True)]
        tables.append(Table("Most frequent confusions", head, rows))
    return tables


def patient_table(content):
    """list[Table]: of segmentation.json: its patients from the best to the worst."""
    try:
        patients = sorted(content["patients"], key=lambda p: -p["dice"])
        has_distance = any("hd95" in p for p in patients)
        rows = [
            [
                cell(rank, str(rank)),
                Cell(str(p["patient"])),
                cell(p["dice"], f"{p['dice']:.1f}", _share(p["dice"], 100)),
                *([cell(p.get("hd95"))] if has_distance else []),
                *(cell(p[key], str(p[key])) for key in ("num_slices", "num_tumour_slices")),
                *(cell(p[key], f"{p[key]:,}") for key in ("true", "predicted", "intersection")),
            ]
            for rank, p in enumerate(patients, 1)
        ]
    except (KeyError, TypeError, ValueError):
        return []
    head = [("rank", True), ("patient", False), ("volume Dice, %", True)]
    head += [("95 % Hausdorff distance, mm", True)] if has_distance else []
    head += [
        ("slices", True),
        ("with tumour", True),
        ("true pixels", True),
        ("predicted", True),
        ("in both", True),
    ]
    return [Table("Patients from best to worst", head, rows)]


def layer_table(layers):
    """Table or None: singular values and penalty of each layer at the first and the last measurement."""
    measures = {
        "min": "smallest σ",
        "max": "largest σ",
        "error": "max |σ − 1|",
        "penalty": "penalty",
    }
    used = {k: v for k, v in measures.items() if any(k in layer["before"] for layer in layers.values())}
    if not used:
        return None
    head = [("layer", False)]
    head += [(f"{name} {when}", True) for name in used.values() for when in ("before", "after")]
    rows = [
        [Cell(name), *(cell(layer[when].get(key)) for key in used for when in ("before", "after"))]
        for name, layer in layers.items()
    ]
    steps = {layer[w].get("iteration") for layer in layers.values() for w in ("before", "after")} - {None}
    note = f"Logged values are of iteration {min(steps):,} and {max(steps):,}." if steps else ""
    if "error" in used:
        note += " Singular values σ of each convolution on the smallest circular grid; an isometry has σ = 1."
        note += " Kernels that are kept centred (MODEL.ISONET.CENTRED) have a smallest σ of 0, by design."
    return Table("Layers", head, rows, note.strip())


def run_tables(runs):
    """list[dict]: of each start, the latest first: ``command`` and ``rows`` of (name, value)."""
    found = []
    for run in reversed(runs):
        rows = [("started", run.get("date"))]
        commit = run.get("commit") or "unknown"
        rows.append(("commit", f"{commit}, with changes" if run.get("dirty") else commit))
        for part in ("hardware", "versions"):
            values = run.get(part)
            if isinstance(values, dict):
                rows += [(name, value) for name, value in values.items() if value is not None]
        shown = [(str(name), str(value)) for name, value in rows if value is not None]
        found.append({"command": str(run.get("command", "")), "rows": shown})
    return found


def _share(value, whole):
    """value / whole, within [0, 1]; None where there is none."""
    if value is None or not whole or not math.isfinite(value):
        return None
    return min(1.0, max(0.0, value / whole))
