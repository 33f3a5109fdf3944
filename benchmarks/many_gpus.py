"""The penalty divided among processes: how even the shares are, what they cost, and an estimate for GPUs."""

import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from detectron2.engine import launch

from iso_d2.engine.model_penalty import _share, penalised_layers
from iso_d2.isometry import orthogonality_losses, orthogonality_multiply_adds

from .estimates import H100, all_reduce_seconds, count, seconds
from .launches import as_on_gpu
from .networks import isonet, training_step
from .options import Options
from .penalty import values_and_gradients
from .report import Table
from .scaling import measure_share
from .timing import quartiles

PROCESSES, GPUS, MEASURED = (1, 2, 4, 8, 52, 512), (1, 8, 64, 512), (1, 2, 4)
# Of each GPU in the estimate
BATCH = 64


def loads(layers, processes):
    """list[int]: the multiply-adds of the penalty in each process with layers; `layers` is name -> module."""
    return [sum(map(orthogonality_multiply_adds, share)) for share in _shares(layers, processes)]


def _shares(layers, processes):
    """The layers of each process but of those that are left without any, which come last."""
    shares = (_share(layers, "paper", process, processes) for process in range(min(processes, len(layers))))
    return [list(share.values()) for share in shares]


def penalty_seconds(layers, processes, machine):
    """Estimated time of the slowest process: float, seconds. The work of each share is counted."""
    return max(seconds(_work(share), machine, machine.single) for share in _shares(layers, processes))


def _work(convs):
    step = partial(values_and_gradients, convs, orthogonality_losses)
    with as_on_gpu():
        step()
        return count(step)


def measure_many_gpus(options, limit):
    """The part "many_gpus": list[Table]. The first two are counted and estimated, the last is measured."""
    net = isonet(options)
    layers = penalised_layers(net)
    counted = {processes: loads(layers, processes) for processes in PROCESSES}
    whole = sum(counted[1])
    shares = [
        {
            "processes": processes,
            "largest share": max(load) / whole,
            "over an even one": max(load) * processes / whole,
        }
        for processes, load in counted.items()
    ]
    return [
        Table(f"Shares of the penalty of {len(layers)} layers by multiply-adds, counted", shares),
        _estimated(net, layers, options),
        Table(
            "CPU time of the penalty's value and gradient in each process, one thread each",
            [_measured(number, loads(layers, number), options) for number in MEASURED],
        ),
    ]


def _estimated(net, layers, options):
    step, images = training_step(net, options), Options(batch=2, size=options.size).images()
    step(images)
    one, two = (count(lambda n=n: step(images[:n])) for n in (1, 2))
    network = seconds(one.of(BATCH, two).halved(), H100, H100.half)
    size = sum(parameter.nbytes for parameter in net.parameters())
    rows = []
    for gpus in GPUS:
        penalty, reduce = penalty_seconds(layers, gpus, H100), all_reduce_seconds(size, gpus, H100)
        # DistributedDataParallel averages gradients while the backward pass goes on
        step_seconds = max(network + penalty, reduce)
        rows.append(
            {
                "GPUs": gpus,
                "forward and backward, ms": 1000 * network,
                "penalty, ms": 1000 * penalty,
                "all-reduce, ms": 1000 * reduce,
                "step, ms": 1000 * step_seconds,
                "penalty over step": penalty / step_seconds,
                "images / s": BATCH * gpus / step_seconds,
                "precision": "bf16, penalty float32",
            }
        )
    title = f"Training step, {BATCH} images of each {H100.name}, bf16, penalty in float32: estimated"
    return Table(title, rows)


def _measured(number, load, options):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        threads = torch.get_num_threads()
        launch(measure_share, number, dist_url="auto", args=(options, file))
        torch.set_num_threads(threads)
        cpu = json.loads(file.read_text())["cpu"]
    slowest = [1000 * max(row) for row in zip(*cpu, strict=True)]
    total = [1000 * sum(row) for row in zip(*cpu, strict=True)]
    return {
        "processes": number,
        "slowest, ms": quartiles(slowest),
        "all, ms": quartiles(total),
        "slowest over all": quartiles([a / b for a, b in zip(slowest, total, strict=True)]),
        "by multiply-adds": max(load) / sum(load),
        "n": len(slowest),
    }
