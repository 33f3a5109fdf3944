"""How costs grow with depth, width, batch, image size and processes."""

import json
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm
from matplotlib.figure import Figure
from torch import nn

from iso_d2.engine.setup import load_config
from iso_d2.isometry import orthogonality_losses

from .networks import isonet, model_penalty, penalised_convs, resnet, training_step
from .options import ROOT, tf32
from .penalty import paper_losses, values_and_gradients
from .report import Table
from .timing import clock, compare, quartiles

FIGURES = ROOT / "docs" / "figures"
ROUNDS = 5
WIDTHS = (64, 128, 256, 512)
STEP_ISO, STEP_BN = "R-ISONet step", "ResNet BN step"
OURS, PAPER = "penalty, iso_d2", "penalty, paper's form"
# How the columns of times end
MS = ", ms"
OWN_WORK = f"penalty, slowest process{MS}"


def fitted_exponent(curve):
    """The p of y = c x^p by least squares of the logarithms; `curve` is x -> y, all positive."""
    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def sweeps(options):
    """What is varied around the batch and size of the options: axis -> value -> what builds the cases."""

    def steps(**changes):
        changed = replace(options, **changes)
        nets = {STEP_ISO: isonet(changed), STEP_BN: resnet(changed, "BN")}
        return {name: training_step(net, changed, changed.images()) for name, net in nets.items()}

    def penalties(convs):
        forms = {PAPER: paper_losses, OURS: orthogonality_losses}
        return {name: partial(values_and_gradients, convs, form) for name, form in forms.items()}

    def both(depth):
        return steps(depth=depth) | penalties(penalised_convs(isonet(replace(options, depth=depth))))

    def widths(width):
        return penalties([nn.Conv2d(width, width, 3, bias=False).to(options.device)])

    depths = (8, 14, 20) if options.cifar else (18, 34, 50, 101)
    batches = [max(1, options.batch * factor // 4) for factor in (1, 2, 4, 8)]
    sizes = [tuple(side * factor // 4 for side in options.size) for factor in (2, 3, 4, 6)]
    return {
        "depth": {depth: partial(both, depth) for depth in depths},
        "width of a 3x3 convolution": {width: partial(widths, width) for width in WIDTHS},
        "images a step": {batch: partial(steps, batch=batch) for batch in batches},
        "height of the images, pixels": {size[0]: partial(steps, size=size) for size in sizes},
    }


def measure_scaling(options, seconds):
    """The part "scaling": list[Table], and a figure, FIGURES/scaling_<device>.png.

    The time is shared by all points but those of processes.
    """
    chosen = sweeps(options)
    steps, penalties = options.precision, options.penalty_precision
    precision = steps if steps == penalties else f"{steps}, penalties {penalties}"
    rounds, share = min(options.repeats, ROUNDS), seconds / sum(map(len, chosen.values()))
    swept = {}
    for axis, points in chosen.items():
        measured = {value: compare(build(), rounds, share) for value, build in points.items()}
        swept[axis] = [
            {axis: value, "n": point.n}
            | {f"{name}{MS}": point.milliseconds(name) for name in point.times}
            | {"precision": precision}
            for value, point in measured.items()
        ]
    if can_launch_two(options.device):
        rows = [_with_processes(options, number) for number in (1, 2)]
        swept["processes"] = [{**row, "precision": penalties} for row in rows]
    curves = {axis: curves_of(axis, rows) for axis, rows in swept.items()}
    draw(curves, FIGURES / f"scaling_{options.device}.png")
    tables = []
    for axis, rows in swept.items():
        fits = [f"{name}: {fitted_exponent(curve):.2f}" for name, curve in curves[axis].items()]
        tables.append(Table(f"Growth with {axis} (exponents: {'; '.join(fits)})", rows))
    return tables


def curves_of(axis, rows):
    """The medians in the rows of a table: dict[str, dict[float, float]], column -> value -> ms."""
    names = [column for column in rows[0] if column.endswith(MS)]
    return {name.removesuffix(MS): {row[axis]: row[name]["median"] for row in rows} for name in names}


def draw(curves, file):
    """Draw one panel an axis, logarithmic both ways, with the fitted exponent of each curve in the legend."""
    figure = Figure(figsize=(4 * len(curves), 3.6), layout="tight")
    panels = figure.subplots(1, len(curves), squeeze=False)
    for panel, (axis, named) in zip(panels[0], curves.items(), strict=True):
        for name, curve in named.items():
            label = f"{name}: {fitted_exponent(curve):.2f}"
            panel.loglog(list(curve), list(curve.values()), marker="o", label=label)
        panel.set_xticks(sorted({value for curve in named.values() for value in curve}))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_formatter(lambda value, _: "")
        panel.set(xlabel=axis, ylabel="ms")
        panel.legend(fontsize=7, title="exponent", title_fontsize=7)
        panel.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def can_launch_two(device):
    """Whether Detectron2 launches two processes on this machine that work on a device.

    Where there is CUDA, it gives each process a GPU of its own and they talk by NCCL, which moves nothing
    that lies on a CPU.
    """
    return torch.cuda.device_count() > 1 if device == "cuda" else not torch.cuda.is_available()


class PenaltyAlone(nn.Module):
    """A model whose loss is its `penalty`, set later, since that depends on the model's wrapper."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.penalty = None

    def forward(self):
        return self.penalty()[0]


def _with_processes(options, number):
    """The row of so many processes, each with one thread and its share of the layers."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        launch(measure_share, number, dist_url="auto", args=(options, file))
        measured = json.loads(file.read_text())
    torch.set_num_threads(threads)
    times = [1000 * seconds for seconds in measured["seconds"]]
    layers = " + ".join(str(len(names)) for names in measured["layers"])
    return {"processes": number, "layers": layers, OWN_WORK: quartiles(times), "n": len(times)}


def measure_share(options, file):
    """In each process: time the penalty's own work in a step, value and gradient of the layers it has there.

    The averaging of the gradients is left out: a step has it without the penalty as well. The file gets, as
    json, ``seconds`` of the slowest process by round, ``cpu`` (seconds of CPU time by round) and ``layers``
    (names) by process.
    """
    torch.set_num_threads(1)
    model = PenaltyAlone(isonet(options))
    # As in training: the layers are divided among processes that average their gradients, no others
    device_ids = [comm.get_local_rank()] if options.device == "cuda" else None
    wrapped = create_ddp_model(model, device_ids=device_ids)
    model.penalty = model_penalty(wrapped, load_config("", ["MODEL.DEVICE", options.device]))
    step = tf32(options.dtype == "tf32")(lambda: model().backward())  # in a process of its own
    step()  # unmeasured: it allocates
    # the layers of other processes have a gradient of 0
    own = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
    times, cpu = [], []
    for _ in range(min(options.repeats, ROUNDS)):
        model.zero_grad(set_to_none=True)
        comm.synchronize()
        start, used = clock(), time.process_time()
        step()
        cpu.append(time.process_time() - used)
        times.append(clock() - start)
    slowest = [max(row) for row in zip(*comm.all_gather(times), strict=True)]
    layers, cpu = comm.all_gather(own), comm.all_gather(cpu)
    if comm.is_main_process():
        file.write_text(json.dumps({"seconds": slowest, "cpu": cpu, "layers": layers}))
    if comm.get_world_size() > 1:
        comm.synchronize()
        # some threads of torch's may still run, and an orderly end aborts then now and then
        os._exit(0)
