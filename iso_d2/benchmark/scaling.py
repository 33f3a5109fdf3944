"""How the costs grow with depth, width, batch, image size and processes."""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn

from ..engine.setup import load_config
from .networks import add_penalty, isonet, penalised_convs, resnet, training_step
from .options import ROOT
from .penalty import by_iso_d2, by_paper, width_convs
from .report import Table
from .timing import compare, quartiles

FIGURES = ROOT / "docs" / "figures"
ROUNDS = 5
WIDTHS = (64, 128, 256, 512)
STEP_ISO, STEP_BN = "R-ISONet step", "ResNet BN step"
OURS, PAPER = "penalty, iso_d2", "penalty, paper's form"


def fitted_exponent(x, y):
    """The p of y = c x^p by least squares of the logarithms.

    Args:
        x, y (sequence of float): positive, two or more points.

    Returns:
        float
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def sweeps(options):
    """What is varied, and the comparison at each point.

    Returns:
        dict[str, dict[float, callable]]: axis -> value -> function without arguments that builds the
        alternatives, dict[str, callable].
    """
    depths = (8, 14, 20) if options.cifar else (18, 34, 50, 101)
    batches = [max(1, options.batch * factor // 4) for factor in (1, 2, 4, 8)]
    sizes = [[side * factor // 4 for side in options.size] for factor in (2, 3, 4, 6)]
    return {
        "depth": {depth: lambda depth=depth: _at_depth(options, depth) for depth in depths},
        "width of a 3x3 convolution": {
            width: lambda convs=convs: {PAPER: by_paper(convs), OURS: by_iso_d2(convs)}
            for width, convs in width_convs(options, WIDTHS).items()
        },
        "images a step": {batch: lambda batch=batch: _steps(options, batch=batch) for batch in batches},
        "height of the images, pixels": {
            size[0]: lambda size=size: _steps(options, size=tuple(size)) for size in sizes
        },
    }


def _steps(options, depth=None, **changes):
    options = dataclasses.replace(options, **changes)
    images = options.images()
    return {
        STEP_ISO: training_step(isonet(options, depth), images, options),
        STEP_BN: training_step(resnet(options, "BN", depth), images, options),
    }


def _at_depth(options, depth):
    convs = penalised_convs(isonet(options, depth))
    return {**_steps(options, depth), PAPER: by_paper(convs), OURS: by_iso_d2(convs)}


def measure_scaling(options, seconds, figure=None, chosen=None):
    """The part "scaling": list[Table], and a figure docs/figures/scaling_<device>.png.

    Args:
        options (Options): batch and size are the middle of the sweeps.
        seconds (float): time for it, shared by all points but those of processes.
        figure (Path or None): in place of the usual file.
        chosen (dict or None): in place of `sweeps` of the options.
    """
    chosen = sweeps(options) if chosen is None else chosen
    points = sum(map(len, chosen.values()))
    medians, tables = {}, []
    for axis, values in chosen.items():
        rows, medians[axis] = [], {}
        for value, build in values.items():
            rounds = min(options.repeats, ROUNDS)
            measured = compare(build(), rounds, seconds / points, options.device)
            row = {axis: value, "n": measured.n}
            for name in measured.times:
                row[f"{name}, ms"] = measured.milliseconds(name)
                medians[axis].setdefault(name, {})[value] = row[f"{name}, ms"]["median"]
            rows.append(row)
        tables.append(Table(f"Growth with {axis}{_exponents(medians[axis])}", rows))
    if options.device == "cpu" or torch.cuda.device_count() > 1:
        axis, name = "processes", f"{OURS}, share of a process"
        rows = [_with_processes(options, number) for number in (1, 2)]
        medians[axis] = {name: {row[axis]: row["ms"]["median"] for row in rows}}
        tables.append(Table(f"Growth with {axis}{_exponents(medians[axis])}", rows))
    figure = figure or FIGURES / f"scaling_{options.device}.png"
    draw(medians, figure)
    return tables


def _exponents(curves):
    fits = [f"{name}: {fitted_exponent(*zip(*c.items(), strict=True)):.2f}" for name, c in curves.items()]
    return f" (exponents: {'; '.join(fits)})"


def draw(medians, file):
    """Draw one panel an axis, logarithmic both ways, with the fitted exponent of each curve in the legend.

    Args:
        medians (dict[str, dict[str, dict[float, float]]]): axis -> curve -> value -> ms.
        file (Path): the PNG; its folder is made if needed.
    """
    figure, panels = plt.subplots(1, len(medians), figsize=(4 * len(medians), 3.6), squeeze=False)
    for panel, (axis, curves) in zip(panels[0], medians.items(), strict=True):
        for name, curve in curves.items():
            x, y = zip(*sorted(curve.items()), strict=True)
            panel.loglog(x, y, marker="o", label=f"{name}: {fitted_exponent(x, y):.2f}")
        panel.set_xticks(sorted({value for curve in curves.values() for value in curve}))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_formatter(lambda value, _: "")
        panel.set(xlabel=axis, ylabel="ms")
        panel.legend(fontsize=7, title="exponent", title_fontsize=7)
        panel.grid(alpha=0.3)
    figure.tight_layout()
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


class PenaltyAlone(nn.Module):
    """A model whose losses are those that hooks add."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self):
        return {}


def _with_processes(options, number):
    """The row of so many processes, each with one thread and what the penalty's hook gives it to do."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        if number == 1:
            threads = torch.get_num_threads()
            measure_share(options, file)
            torch.set_num_threads(threads)
        else:
            launch(measure_share, number, dist_url="auto", args=(options, file))
        times = json.loads(file.read_text())
    return {"processes": number, "ms": quartiles([1000 * t for t in times]), "n": len(times)}


def measure_share(options, file):
    """In each process: time what the penalty of a step costs it. The slowest one of each round counts.

    Args:
        options (Options): the network and the most rounds.
        file (Path): json, the list of seconds by round.
    """
    torch.set_num_threads(1)
    model = PenaltyAlone(isonet(options))
    add_penalty(model, load_config())

    def step():
        sum(model().values()).backward()
        model.zero_grad(set_to_none=True)
        if options.device == "cuda":
            torch.cuda.synchronize()

    times = []
    for _ in range(min(options.repeats, ROUNDS) + 1):
        comm.synchronize()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    del times[0]  # of the first step, which allocates
    slowest = [max(row) for row in zip(*comm.all_gather(times), strict=True)]
    if comm.is_main_process():
        file.write_text(json.dumps(slowest))
