"""Pictures for the README: learning curves, and samples of predictions (the report's figures 7 and 8)."""

import io
import math
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from .arm import SCALES
from .arms import ARMS
from .jobs import train_images
from .report_values import TABLES
from .samples import SAMPLES
from .tables import WHERE_FIGURES, records_of, task_loss, value_of

# Bytes of a picture at most, and the share of its side by which one that is larger is made smaller
MAX_BYTES, SHRINK = 300_000, 0.8


def write_figures(root, records):
    """Draw what the records and the checkpoints on this machine allow; other pictures stay as they are.

    Args:
        root (Path): the repository.
        records (dict): scale -> arm -> list of records.

    Returns:
        tuple: list[Path] of the files written, and list[str] of what could not be drawn, with the reason.
    """
    folder = Path(root) / WHERE_FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    drawn, notes = [], []
    for scale in SCALES:
        by_arm = records.get(scale, {})
        for table in TABLES:
            draw = by_batch if table.by_batch else curves
            figure = table.curve and draw(table, records, scale)
            if figure:
                drawn.append(save(figure, folder / f"reproduction_{table.arms}_{scale}.png"))
        for table, draw in SAMPLES.items():
            trained = [arm for arm in ARMS if arm.table == table and arm.name in by_arm]
            if not trained:
                continue
            try:
                figure = draw(Path(root), trained, scale, by_arm)
            except (KeyError, OSError, RuntimeError, ValueError) as error:
                notes.append(f"no new pictures of {table} at {scale} scale: {error}")
                continue
            drawn.append(save(figure, folder / f"reproduction_samples_{table}_{scale}.png"))
    return drawn, notes


def curves(table, records, scale):
    """Training loss, and the table's measure on test data, by epoch, of the first seed of each arm.

    Args:
        table (Table): its ``curve`` is that measure.
        records (dict): scale -> arm -> list of records.
        scale (str): of the runs.

    Returns:
        Figure or None: None if there is nothing to draw.
    """
    found = [(arm, records_of(arm, scale, records)) for arm in ARMS if arm.table == table.arms]
    chosen = [(arm, group[0]) for arm, group in found if group and group[0]["curve"]]
    if not chosen:
        return None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"{table.title.partition(': validation')[0]} ({scale} scale)")
    losses, measure = figure.subplots(1, 2)
    evaluated, seen = [], []
    for arm, record in chosen:
        epoch = epochs_of(record)
        steps, values = zip(*[(epoch(point), task_loss(point)) for point in record["curve"]], strict=True)
        diverged = record["diverged_at"] is not None
        label = f"{arm.label}: diverged" if diverged else arm.label
        line = losses.plot(steps, values, label=label)[0]
        seen += () if diverged else values
        points = [
            (epoch(point), point["metrics"][table.curve.name])
            for point in record["evaluations"].get(table.curve.dataset, [])
            if table.curve.name in point["metrics"]
        ]
        if points:
            evaluated.append((arm.label, line.get_color(), points))
    losses.set(xlabel="epoch", ylabel="training loss, without the penalty")
    if seen:  # what diverged leaves the picture
        losses.set_ylim(0.95 * min(seen), 1.05 * max(seen))
    losses.legend(fontsize="small")
    _draw_measure(measure, evaluated, table.curve.heading)
    for axes in (losses, measure):
        axes.grid(alpha=0.3)
    return figure


def by_batch(table, records, scale):
    """The table's measure by the images of a batch: a line for each network, mean and spread of its seeds.

    Arguments and result as of :func:`curves`. A training that diverged counts as 0.
    """
    lines = {}
    for arm in ARMS:
        group = records_of(arm, scale, records) if arm.table == table.arms else []
        values = [value_of(record, table.curve) for record in group]
        # a training that diverged has learned nothing, and one that finds nothing has an AP of NaN
        values = [0.0 if value is None or math.isnan(value) else value for value in values]
        if values:
            lines.setdefault(group[0]["net"], []).append((group[0]["batch"], values))
    if not lines:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(table.title)
    batches = sorted({batch for points in lines.values() for batch, _ in points})
    for number, (net, points) in enumerate(lines.items()):
        where = [batches.index(batch) + 0.04 * (number - (len(lines) - 1) / 2) for batch, _ in points]
        means = [statistics.mean(values) for _, values in points]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        axes.errorbar(where, means, spread, fmt="o-", capsize=4, label=net)
    axes.set_xticks(range(len(batches)), batches)
    axes.set(xlabel="images a step", ylabel=table.curve.heading, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _draw_measure(axes, evaluated, heading):
    """Lines by epoch, or bars where each network has been evaluated once."""
    if all(len(points) == 1 for _, _, points in evaluated):
        labels, colors, points = zip(*evaluated, strict=True) if evaluated else ((), (), ())
        axes.barh(range(len(labels)), [value for ((_, value),) in points], color=colors, height=0.6)
        axes.set_yticks(range(len(labels)), labels, fontsize="small")
        axes.invert_yaxis()
        axes.set(xlabel=heading)
        return
    for label, color, points in evaluated:
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=label)
    axes.set(xlabel="epoch", ylabel=heading, ylim=(0, None))


def epochs_of(record):
    """Function: an entry with ``iteration`` -> passes over the training set that are done after it."""
    options = dict(zip(record["options"][::2], record["options"][1::2], strict=True))
    images = train_images(record["dataset"], options.get("DATASETS.LGG_SPLIT"))
    return lambda point: (point["iteration"] + 1) * record["batch"] / images


def save(figure, path):
    """Write a figure as a PNG of 256 colours, smaller where it would have more than 300 kB.

    Args:
        figure (Figure): matplotlib's.
        path (Path): the file.

    Returns:
        Path: the file.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    full = Image.open(buffer).convert("RGB")
    share = 1.0
    while True:
        size = [max(1, round(side * share)) for side in full.size]
        content = io.BytesIO()
        full.resize(size, Image.Resampling.LANCZOS).quantize(256).save(content, "PNG", optimize=True)
        if content.tell() <= MAX_BYTES:
            break
        share *= SHRINK
    path.write_bytes(content.getvalue())
    return path
