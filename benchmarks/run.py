"""Run parts of the benchmark, each in its share of the time."""

import gc
import time

import torch

from .activation import measure_activation
from .data import measure_data
from .inference import measure_inference
from .machine import measure_machine
from .memory import measure_memory
from .penalty import measure_penalty
from .report import as_text, describe_run, write_part
from .scaling import measure_scaling
from .step import measure_step

# What measures each part, and its weight when the time is divided; what is counted needs little.
PARTS = {
    "machine": (measure_machine, 0.3),
    "penalty": (measure_penalty, 5),
    "activation": (measure_activation, 1.5),
    "step": (measure_step, 5),
    "memory": (measure_memory, 0.5),
    "inference": (measure_inference, 1.5),
    "data": (measure_data, 2.5),
    "scaling": (measure_scaling, 8),
}
# What `all` means: scaling has to be asked for.
ALL = tuple(part for part in PARTS if part != "scaling")


def shares(parts, seconds):
    """Divide the time among parts: dict[str, float] in seconds."""
    total = sum(PARTS[part][1] for part in parts)
    return {part: seconds * PARTS[part][1] / total for part in parts}


def run_benchmark(parts, options, seconds, output, show=print):
    """Measure parts one after the other; each is shown and written as soon as it is done.

    Args:
        parts (sequence of str): of PARTS.
        options (Options): what all parts share.
        seconds (float): time for all of it; building the networks and the least number of rounds come on top.
        output (str or Path): results file, see `write_part`.
        show (callable): takes the text of each table.

    Raises:
        ValueError: the results file holds something else.
        RuntimeError: two forms that should agree do not.
    """
    context = describe_run(options)
    for part, share in shares(parts, seconds).items():
        start = time.perf_counter()
        tables = PARTS[part][0](options, share)
        took = time.perf_counter() - start
        show(f"\n== {part}, {took:.0f} s\n")
        for table in tables:
            show(as_text(table))
        write_part(output, part, tables, context, options, took)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
