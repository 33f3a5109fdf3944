"""Run parts of the benchmark, each in its share of the time."""

import gc
import time

import torch

from .activation import measure_activation
from .appetite import measure_appetite
from .compilation import measure_compilation
from .data import measure_data
from .inference import measure_inference
from .launches import measure_launches
from .machine import measure_machine
from .many_gpus import measure_many_gpus
from .memory import measure_memory
from .options import tf32
from .penalty import measure_penalty
from .profiling import measure_profile
from .report import as_text, describe_run, read_results, write_part
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
    "profile": (measure_profile, 1),
    "compile": (measure_compilation, 2),
    "launches": (measure_launches, 0.1),
    "appetite": (measure_appetite, 2),
    "many_gpus": (measure_many_gpus, 1),
    "scaling": (measure_scaling, 8),
}
# What `all` means: these have to be asked for.
ON_REQUEST = ("profile", "compile", "launches", "appetite", "many_gpus", "scaling")
ALL = tuple(part for part in PARTS if part not in ON_REQUEST)


def run_benchmark(parts, options, seconds, output):
    """Measure parts one after the other; each is shown and written as soon as it is done.

    Every row gets the precision of what it measured, ``precision``, unless it has one. `seconds` are for all
    of it; building the networks and the least number of rounds come on top. `output` is a results file;
    one that holds something else is a ValueError. A RuntimeError: two forms that should agree do not.
    """
    read_results(output)
    total = sum(PARTS[part][1] for part in parts)
    with tf32(options.dtype == "tf32"):
        context = describe_run(options)
        print(*(f"{name}: {value}" for name, value in context.items()), sep="\n")
        for part in parts:
            measure, weight = PARTS[part]
            start = time.perf_counter()
            tables = measure(options, seconds * weight / total)
            took = time.perf_counter() - start
            for row in (row for table in tables for row in table.rows):
                row.setdefault("precision", options.precision)
            print(f"\n== {part}, {took:.0f} s\n", *map(as_text, tables), sep="\n", flush=True)
            write_part(output, part, tables, context, options, took)
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()
