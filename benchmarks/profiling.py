"""Where the time of a training step goes, by torch.profiler: a detector, a classifier and a UNet."""

import itertools

from torch.profiler import ProfilerActivity, profile

from iso_d2.engine import Trainer

from .data import data_paths, training_of
from .report import Table

# Steps before the profile and in it, and the operators that are shown
WARM_UP, STEPS, SHOWN = 3, 3, 20


def measure_profile(options, seconds, paths=None):
    """The part "profile": list[Table], one for each data path's model. `seconds` is not used up.

    The operators that take most of the device's time (without a GPU, of the CPU's), their time without what
    they call. A step has the penalty, the config's optimizer and no data loading.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device == "cuda")
    kind = "device" if options.device == "cuda" else "cpu"
    tables = []
    for path in data_paths() if paths is None else paths:
        cfg, step = training_of(path, options, penalised=True)
        batches = list(itertools.islice(Trainer.build_train_loader(cfg), WARM_UP + STEPS))
        for batch in batches[:WARM_UP]:
            step(batch)
        with profile(activities=activities) as profiled:
            for batch in batches[WARM_UP:]:
                step(batch)
        events = profiled.key_averages()
        times = {event: getattr(event, f"self_{kind}_time_total") for event in events}
        total = sum(times.values())
        rows = [
            {
                "operator": event.key,
                "calls a step": event.count / STEPS,
                "cpu ms a step": event.self_cpu_time_total / 1000 / STEPS,
                f"{kind} ms a step": times[event] / 1000 / STEPS,
                "share": times[event] / total if total else None,
            }
            for event in sorted(times, key=times.get, reverse=True)[:SHOWN]
        ]
        milliseconds = f"{total / 1000 / STEPS:.1f} {kind} ms"
        title = f"{path.config}, training step of batch {cfg.SOLVER.IMS_PER_BATCH}: {milliseconds}"
        tables.append(Table(title, rows))
    return tables
