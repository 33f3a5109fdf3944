"""How the costs grow with depth, width, batch, image size and processes."""

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm
from torch import nn

from ..engine.setup import load_config
from .networks import add_penalty, isonet, penalised_convs, resnet, training_step
from .options import ROOT
from .penalty import by_iso_d2, by_paper, tf32, width_convs
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
            width: lambda convs=convs: _penalties(convs)
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
    return {**_steps(options, depth), **_penalties(convs)}


def _penalties(convs):
    """Both forms in float32 throughout, on a GPU too, whatever the steps beside them are allowed."""
    return {PAPER: tf32(False)(by_paper(convs)), OURS: tf32(False)(by_iso_d2(convs))}


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
    if can_launch_two(options.device):
        axis, name = "processes", f"{OURS}, own work of a process"
        rows = [_with_processes(options, number) for number in (1, 2)]
        medians[axis] = {name: {row[axis]: row["ms"]["median"] for row in rows}}
        title = "of the penalty's own work in the slowest of them, without the averaging of gradients"
        tables.append(Table(f"Growth with {axis}, {title}{_exponents(medians[axis])}", rows))
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


def can_launch_two(device):
    """Whether Detectron2 launches two processes on this machine that work on a device.

    Where there is CUDA, it gives each process a GPU of its own and they talk by NCCL, which moves nothing
    that lies on a CPU.

    Args:
        device (str): "cpu" or "cuda".

    Returns:
        bool
    """
    return torch.cuda.device_count() > 1 if device == "cuda" else not torch.cuda.is_available()


class PenaltyAlone(nn.Module):
    """A model whose losses are those that hooks add."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self):
        return {}


def _with_processes(options, number):
    """The row of so many processes, each with one thread and the layers that the penalty's hook gives it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        if number == 1:
            threads = torch.get_num_threads()
            measure_share(options, file)
            torch.set_num_threads(threads)
        else:
            launch(measure_share_and_leave, number, dist_url="auto", args=(options, file))
        measured = json.loads(file.read_text())
    times = [1000 * seconds for seconds in measured["seconds"]]
    layers = " + ".join(str(len(names)) for names in measured["layers"])
    return {"processes": number, "layers": layers, "ms": quartiles(times), "n": len(times)}


def measure_share(options, file):
    """In each process: time the penalty's own work in a step, value and gradient of the layers it has there.

    The averaging of the gradients is left out: a step has it without the penalty as well.

    Args:
        options (Options): the network and the most rounds.
        file (Path): json: ``seconds`` of the slowest process by round, ``layers`` (names) by process.
    """
    torch.set_num_threads(1)
    model = PenaltyAlone(isonet(options))
    on_gpu = options.device == "cuda"
    # As in training: the hook divides the layers among processes that average their gradients, no others
    averaged = create_ddp_model(model, device_ids=[comm.get_local_rank()] if on_gpu else None)
    add_penalty(averaged, load_config())

    @tf32(False)
    def step():
        sum(model().values()).backward()
        if on_gpu:
            torch.cuda.synchronize()

    step()  # unmeasured: it allocates
    # the hook gives the layers of other processes a gradient of 0
    own = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
    times = []
    for _ in range(min(options.repeats, ROUNDS)):
        model.zero_grad(set_to_none=True)
        comm.synchronize()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    slowest = [max(row) for row in zip(*comm.all_gather(times), strict=True)]
    layers = comm.all_gather(own)
    if comm.is_main_process():
        file.write_text(json.dumps({"seconds": slowest, "layers": layers}))


def measure_share_and_leave(options, file):
    """`measure_share` as the whole of a launched process.

    It ends at once: some threads of torch's may still run, and an orderly end aborts then now and then.
    """
    measure_share(options, file)
    comm.synchronize()
    os._exit(0)
