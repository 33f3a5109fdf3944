"""Pictures for the README: learning curves, and samples of predictions (the report's figures 7 and 8)."""

import io
import statistics

from matplotlib.figure import Figure
from PIL import Image

from .experiment import SCALES, TABLES
from .record import patients_of, records_of, scores, task_loss
from .run import IMAGES
from .samples import SAMPLES

WHERE_FIGURES = "docs/figures"
# What is drawn of the isometry during a training: title -> key of the record's "isometry" and a factor
PANELS = {
    "Largest singular value (median of the layers)": ("sigma_max_median", 1),
    "Singular values from 0.5 to 1.5, in % (mean of the layers)": ("near_mean", 100),
    "Values that SReLUs clip, in % (mean of the layers)": ("held_mean", 100),
    "Thresholds of the SReLUs (mean of the layers)": ("threshold_mean", 1),
}
# Bytes of a picture at most, and the share of its side by which one that is larger is made smaller
MAX_BYTES, SHRINK = 300_000, 0.8


def write_figures(root, records):
    """Draw what the records and the checkpoints on this machine allow; other pictures stay as they are.

    Args:
        root (Path): the repository.
        records (dict): scale -> experiment -> list of records.

    Returns:
        tuple: list[Path] of the files written, and list[str] of what could not be drawn, with the reason.
    """
    folder = root / WHERE_FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    drawn, notes = [], []
    for scale in SCALES:
        for table in TABLES:
            kind = by_batch if table.by_batch else by_patient if table.experiments[0].folds else curves
            figure = kind(table, records, scale)
            if figure:
                drawn.append(save(figure, folder / f"reproduction_{table.name}_{scale}.png"))
            if layers := isometry_curves(table, records, scale):
                drawn.append(save(layers, folder / f"reproduction_isometry_{table.name}_{scale}.png"))
            if not figure or not table.samples:
                continue
            try:
                figure = SAMPLES[table.samples](root, table, scale, records)
            except (KeyError, OSError, RuntimeError, ValueError) as error:
                notes.append(f"no new pictures of {table.name} at {scale} scale: {error}")
                continue
            drawn.append(save(figure, folder / f"reproduction_samples_{table.name}_{scale}.png"))
    return drawn, notes


def curves(table, records, scale):
    """Training loss, and the table's measure on test data, by epoch, of the first seed of each experiment.

    Returns a matplotlib Figure; None if there is nothing to draw.
    """
    found = [(experiment.label, records_of(experiment, scale, records)) for experiment in table.experiments]
    chosen = [(label, group[0]) for label, group in found if group and group[0]["curve"]]
    if not chosen or table.curve is None:
        return None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"{table.title} ({scale} scale)")
    losses, measure = figure.subplots(1, 2)
    evaluated, seen = [], []
    for label, record in chosen:
        steps = [epochs(record, point) for point in record["curve"]]
        values = [task_loss(point) for point in record["curve"]]
        diverged = record["diverged_at"] is not None
        line = losses.plot(steps, values, label=f"{label}: diverged" if diverged else label)[0]
        seen += () if diverged else values
        points = [
            (epochs(record, point), point["metrics"][table.curve.name])
            for point in record["evaluations"].get(table.curve.dataset, [])
            if table.curve.name in point["metrics"]
        ]
        if points:
            evaluated.append((label, line.get_color(), points))
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

    Arguments and result as of :func:`curves`. What :func:`.record.scores` says of gaps holds.
    """
    lines = {}
    for experiment in table.experiments:
        group = records_of(experiment, scale, records)
        if values := scores(group, table.curve):
            lines.setdefault(experiment.net, []).append((group[0]["batch"], values))
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


def isometry_curves(table, records, scale):
    """The layers' singular values, clipped values and thresholds by epoch: a line for each experiment.

    Its points are means over the seeds; trainings that diverged are left out. Arguments and result as of
    :func:`curves`.
    """
    found = {}  # label -> title -> epoch -> the seeds' values
    for experiment in table.experiments:
        for run in records_of(experiment, scale, records):
            for point in run.get("isometry", ()) if run["diverged_at"] is None else ():
                for title, (key, factor) in PANELS.items():
                    if key in point:
                        by_epoch = found.setdefault(experiment.label, {}).setdefault(title, {})
                        by_epoch.setdefault(epochs(run, point), []).append(factor * point[key])
    if not found:
        return None
    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(f"{table.title}: isometry during the training ({scale} scale)")
    panels = dict(zip(PANELS, figure.subplots(2, 2).flat, strict=True))
    nets = list(dict.fromkeys(label.split(",")[0] for label in found))
    for number, (label, values) in enumerate(found.items()):
        style = ("-", "--", ":")[nets.index(label.split(",")[0]) % 3]
        for title, by_epoch in values.items():
            means = [statistics.fmean(seeds) for seeds in by_epoch.values()]
            panels[title].plot(list(by_epoch), means, style, color=f"C{number}", label=label)
    for title, axes in panels.items():
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    handles, labels = panels[next(iter(PANELS))].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def by_patient(table, records, scale):
    """Volume Dice of every patient out of fold: how many reach how much, and each network by the last one.

    Arguments and result as of :func:`curves`. A point is a patient; below the diagonal the last experiment
    that was measured is better.
    """
    found = {one.label: patients_of(records_of(one, scale, records)) for one in table.experiments}
    found = {label: dice for label, dice in found.items() if dice}
    if not found:
        return None
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(f"{table.title} ({scale} scale)")
    shares, pairs = figure.subplots(1, 2)
    for label, dice in found.items():
        values = sorted(dice.values())
        share = [100 * (1 - i / len(values)) for i in range(len(values))]
        mean = statistics.mean(values)
        shares.step(values, share, where="pre", label=f"{label}: mean {mean:.1f} % of {len(values)} patients")
    shares.set(
        xlabel="volume Dice (%)", ylabel="patients with at least that (%)", xlim=(0, 100), ylim=(0, 102)
    )
    shares.legend(fontsize="small", loc="lower left")
    *others, (last, reference) = found.items()
    for label, dice in others:
        both = sorted(dice.keys() & reference.keys())
        points = [[one[name] for name in both] for one in (reference, dice)]
        pairs.plot(*points, ".", label=label, alpha=0.7)
    pairs.plot([0, 100], [0, 100], color="gray", linewidth=0.8)
    pairs.set(
        xlabel=f"volume Dice (%), {last}", ylabel="volume Dice (%), the others", xlim=(0, 100), ylim=(0, 100)
    )
    pairs.set_aspect("equal")
    if others:
        pairs.legend(fontsize="small", loc="lower right")
    for axes in (shares, pairs):
        axes.grid(alpha=0.3)
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


def epochs(record, point):
    """float: passes over the training set that are done after an entry with ``iteration``."""
    return (point["iteration"] + 1) * record["batch"] / IMAGES[record["dataset"]]


def save(figure, path):
    """Write a figure as a PNG of 256 colours, smaller where it had more than 300 kB; returns the path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    image = Image.open(buffer).convert("RGB")
    while True:
        content = io.BytesIO()
        image.quantize(256).save(content, "PNG", optimize=True)
        if content.tell() <= MAX_BYTES:
            path.write_bytes(content.getvalue())
            return path
        image = image.resize([max(1, round(side * SHRINK)) for side in image.size], Image.Resampling.LANCZOS)
