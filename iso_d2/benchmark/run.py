"""Run parts of the benchmark, each in its share of the time."""

import gc
import time

import torch

from .activation import measure_activation
from .data import measure_data
from .inference import measure_inference
from .machine import measure_machine
from .memory import measure_memory
from .options import describe_run
from .penalty import measure_penalty
from .report import as_text, write_part
from .scaling import measure_scaling
from .step import measure_step

PARTS = {
    "machine": measure_machine,
    "penalty": measure_penalty,
    "activation": measure_activation,
    "step": measure_step,
    "memory": measure_memory,
    "inference": measure_inference,
    "data": measure_data,
    "scaling": measure_scaling,
}
# What `all` means: scaling has to be asked for.
ALL = tuple(part for part in PARTS if part != "scaling")
# How the time is divided; what is counted and not timed needs little.
WEIGHTS = {
    "machine": 0.3,
    "penalty": 5,
    "activation": 1.5,
    "step": 5,
    "memory": 0.5,
    "inference": 1.5,
    "data": 2.5,
    "scaling": 8,
}


def shares(parts, seconds):
    """Divide the time among parts: dict[str, float] in seconds."""
    total = sum(WEIGHTS[part] for part in parts)
    return {part: seconds * WEIGHTS[part] / total for part in parts}


def run_benchmark(parts, options, seconds, output, show=print):
    """Measure parts one after the other; each is shown and written as soon as it is done.

    Args:
        parts (sequence of str): of PARTS.
        options (Options): what all parts share.
        seconds (float): time for all of it; building the networks and the least number of rounds come on top.
        output (str or Path): results file, see `write_part`.
        show (callable): takes the text of each table.

    Raises:
        ValueError: an unknown part; the results file holds something else.
        RuntimeError: two forms that should agree do not.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"benchmark parts are {', '.join(PARTS)}, got {', '.join(map(repr, unknown))}")
    context = describe_run()
    for part, share in shares(parts, seconds).items():
        start = time.perf_counter()
        tables = PARTS[part](options, share)
        took = time.perf_counter() - start
        show(f"\n== {part}, {took:.0f} s")
        for table in tables:
            show("\n" + as_text(table))
        write_part(output, part, tables, context, options, took)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
