"""What a long training needs beside its steps: memory and open files over 20,000 of them, and CPU time.

    python tests/endurance.py memory --output results/robustness.json
    python tests/endurance.py cost --output results/robustness.json
    python tests/endurance.py habits --output results/training.json

"memory" trains a classifier of 8x8 images, with the penalty of each layer in the log at every 5th step.
"cost" is the share of a step that its own random numbers, the looks at the loss and at signals, and
the seeds of the augmentation take, in CPU time of the process. "habits" is the CPU time of a step of one
batch and of the same batch in four parts, and of the moving average of the weights.
"""

import argparse
import collections
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import kills
import numpy as np
import torch
from detectron2.engine import DefaultTrainer, HookBase

from iso_d2.data import LabelledImages, batches, loader, register_labelled_images
from iso_d2.engine import AverageHook, Trainer
from iso_d2.engine.checkpoint_hooks import CheckpointHook
from iso_d2.engine.setup import load_config

PERIOD = 500
# Steps before any is measured
START = 10
ONE_PROCESS = "MODEL.DEVICE cpu SEED 5 DATASETS.TEST () DATALOADER.NUM_WORKERS 0"


def trainer_of(config, steps, folder, options=""):
    options = f"{ONE_PROCESS} {kills.STEPS} {options} SOLVER.CHECKPOINT_PERIOD 5000 OUTPUT_DIR {folder}"
    cfg = load_config(kills.CONFIGS / config, [*options.split(), "SOLVER.MAX_ITER", steps])
    torch.manual_seed(5)
    return Trainer(cfg)


class Watch(HookBase):
    """Resident memory in KiB and open files, at every 500th step."""

    def __init__(self, period=PERIOD):
        self.period, self.found = period, {}

    def after_step(self):
        step = self.trainer.iter + 1
        if step % self.period == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = len(os.listdir("/proc/self/fd"))
            self.found[step] = pages * os.sysconf("SC_PAGE_SIZE") // 1024, files


def memory(steps, folder, period=PERIOD):
    """dict: "steps", "resident KiB" and "open files" at every 500th step, and the growth after the 1000th."""
    pixels = np.random.default_rng(1).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    images = LabelledImages(pixels, np.arange(64) % 2)
    register_labelled_images("tiny_train", lambda: images, ["even", "odd"])
    options = (
        "MODEL.ISONET.DEPTH 8 MODEL.CLASSIFIER.NUM_CLASSES 2 DATASETS.TRAIN ('tiny_train',) "
        "SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.001 ISO.ORTHO.PERIOD 5 ISO.ORTHO.LOG_PERIOD 5"
    )
    trainer, watch = trainer_of("risonet20_shapes_cls.yaml", steps, folder, options), Watch(period)
    trainer.register_hooks([watch])
    trainer.resume_or_load(resume=False)
    trainer.train()
    resident, files = zip(*watch.found.values(), strict=True)
    return {
        "steps": list(watch.found),
        "resident KiB": resident,
        "open files": files,
        "logged values": sum("ortho/" in name for name in trainer.storage.histories()),
        "growth after the 1000th step, KiB": resident[-1] - resident[min(1, len(resident) - 1)],
    }


class Clock:
    """CPU time of calls, by name."""

    def __init__(self):
        self.seconds = collections.Counter()

    def around(self, name, function):
        def timed(*arguments, **options):
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.process_time() - start

        return timed

    def around_seeds(self, seeded):
        @contextlib.contextmanager
        def timed(*numbers):
            context = seeded(*numbers)
            self.around("augmentation", context.__enter__)()
            try:
                yield
            finally:
                self.around("augmentation", context.__exit__)(None, None, None)

        return timed


def cost(config, steps, folder):
    """dict: milliseconds of CPU time of a step, and the share of each part in percent."""
    clock, trainer = Clock(), trainer_of(config, START + steps, folder)
    seconds = []

    class Stamp(HookBase):
        def before_step(self):
            if self.trainer.iter == START:
                clock.seconds.clear()
                seconds.append(time.process_time())

        def after_train(self):
            seconds.append(time.process_time())

    trainer.register_hooks([Stamp()])
    trainer.resume_or_load(resume=False)
    places = (
        (Trainer, "run_step", "step"),
        (DefaultTrainer, "run_step", "Detectron2's step"),
        (CheckpointHook, "after_step", "signals"),
        (batches, "derived_seed", "augmentation"),
    )
    with contextlib.ExitStack() as patches:
        for owner, name, part in places:
            patches.enter_context(mock.patch.object(owner, name, clock.around(part, getattr(owner, name))))
        patches.enter_context(mock.patch.object(loader, "seeded", clock.around_seeds(loader.seeded)))
        patches.enter_context(mock.patch.object(CheckpointHook, "_save", lambda *_: None))
        trainer.train()
    whole, parts = seconds[1] - seconds[0], clock.seconds
    shares = {
        "random numbers and loss": parts["step"] - parts["Detectron2's step"],
        "signals": parts["signals"],
        "augmentation": parts["augmentation"],
    }
    shares = {name: round(100 * value / whole, 3) for name, value in shares.items()}
    return {"ms a step": round(1000 * whole / steps, 2), "n": steps, "percent": shares}


def habits(config, steps, folder, rounds=3):
    """dict: medians over some trainings of the milliseconds of CPU time a step, of each part."""
    found = collections.defaultdict(list)
    for number in range(rounds):
        for parts in (1, 4):
            clock, place = Clock(), f"{folder}/{number}-{parts}"
            trainer = trainer_of(config, START + steps, place, f"SOLVER.EMA 0.999 SOLVER.ACCUMULATE {parts}")
            trainer.register_hooks([_Restart(clock)])
            trainer.resume_or_load(resume=False)
            with contextlib.ExitStack() as patches:
                for owner, name, what in (
                    (Trainer, "run_step", f"step in {parts} parts"),
                    (AverageHook, "after_step", "average"),
                ):
                    timed = clock.around(what, getattr(owner, name))
                    patches.enter_context(mock.patch.object(owner, name, timed))
                patches.enter_context(mock.patch.object(CheckpointHook, "_save", lambda *_: None))
                trainer.train()
            for name, seconds in clock.seconds.items():
                found[name].append(1000 * seconds / steps)
    weights = sum(p.numel() for p in trainer.model.parameters())
    medians = {name: round(float(np.median(values)), 3) for name, values in found.items()}
    return {"ms a step": medians, "n": steps, "rounds": rounds, "weights": weights}


class _Restart(HookBase):
    """Sets a clock to 0 when some steps are over."""

    def __init__(self, clock):
        self.clock = clock

    def before_step(self):
        if self.trainer.iter == START:
            self.clock.seconds.clear()


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["memory", "cost", "habits"])
    parser.add_argument("--steps", type=int, help="20000 for memory, else 100")
    parser.add_argument("--output", type=Path, help="a json file to add the result to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "memory":
            result = memory(options.steps or 20_000, folder)
        else:
            configs = {"classifier": "risonet20_shapes_cls.yaml", "unet": "isounet_phantom.yaml"}
            measure = cost if options.what == "cost" else habits
            result = {
                name: measure(config, options.steps or 100, f"{folder}/{name}")
                for name, config in configs.items()
            }
    print(json.dumps(result))
    if options.output:
        kills.keep(options.output, options.what, result, f"python tests/endurance.py {' '.join(arguments)}")


if __name__ == "__main__":
    main(sys.argv[1:])
