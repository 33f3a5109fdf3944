"""One arm with one seed: its commands, its folders and how far it is."""

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..data.catalog import dataset_root
from ..engine.setup import load_config
from .arm import Arm
from .files import read_metrics
from .needs import missing

# In the folder of an arm that others start from
BACKBONE_FILE = "backbone.pth"
# Images of the training sets
TRAIN_IMAGES = {
    "cifar10_train": 50_000,
    "cifar100_train": 50_000,
    "coco_pbc_train": 1000,
    "shapes_train": 240,
}
LGG_TRAIN_IMAGES = {"image": 3340, "patient": 3347}


def train_images(dataset, lgg_split):
    """int: images of a training set, of which all is there; `lgg_split` counts for LGG alone."""
    return LGG_TRAIN_IMAGES[lgg_split] if dataset.startswith("lgg_") else TRAIN_IMAGES[dataset]


@dataclass(frozen=True)
class Job:
    """An arm at a scale with a seed.

    Args:
        arm (Arm): the experiment.
        scale (str): of SCALES.
        seed (int): SEED of the training.
        root (Path): the repository; commands run there and everything is written below it.
    """

    arm: Arm
    scale: str
    seed: int
    root: Path

    @property
    def name(self):
        return f"{self.arm.name} seed {self.seed}"

    @property
    def run(self):
        """Run: how it is trained; a string, the reason, if it is not at this scale."""
        return getattr(self.arm, self.scale)

    @property
    def folder(self):
        """Path: of checkpoints and logs, relative to the root."""
        return Path("output", "reproduce", self.scale, self.arm.name, f"seed{self.seed}")

    @property
    def result_file(self):
        """Path: of the record, absolute."""
        return self.root / "results" / "reproduction" / self.scale / f"{self.arm.name}-seed{self.seed}.json"

    @property
    def start(self):
        """str: checkpoint under which the training starts: the user's own, else that of another arm."""
        if not self.arm.starts_from:
            return ""
        own = dataset_root() / self.arm.weights
        if own.is_file() and (dataset_root() / (self.arm.counterpart_weights or self.arm.weights)).is_file():
            return str(own)
        other = Path("output", "reproduce", self.scale, self.arm.starts_from, f"seed{self.seed}")
        return str(other / BACKBONE_FILE)

    def options(self):
        """list[str]: KEY VALUE pairs of the training."""
        pairs = ["OUTPUT_DIR", str(self.folder), "SEED", str(self.seed), *self.run.options]
        return [*pairs, "MODEL.WEIGHTS", self.start] if self.start else pairs

    def commands(self):
        """list[list[str]]: to be run one after the other in the root."""
        base = [sys.executable, "tools/train_net.py", "--resume", "--config-file", self.run.config]
        commands = [[*base, *self.options()]]
        if self.run.evaluate:
            test = ["DATASETS.TEST", f"('{self.run.evaluate}',)"]
            commands.append([*base[:3], "--eval-only", *base[3:], *self.options(), *test])
        return commands

    @cached_property
    def config(self):
        """CfgNode: of the training."""
        return load_config(self.root / self.run.config, self.options())

    @cached_property
    def iterations(self):
        """int: length of the training."""
        solver = self.config.SOLVER
        if solver.EPOCHS <= 0:
            return solver.MAX_ITER
        return round(solver.EPOCHS * self.train_images / solver.IMS_PER_BATCH)

    @property
    def train_images(self):
        """int: images of the training set."""
        return train_images(self.config.DATASETS.TRAIN[0], self.config.DATASETS.LGG_SPLIT)

    def iteration(self):
        """int: iterations that are written in its metrics.json; 0 if there is none."""
        path = self.root / self.folder / "metrics.json"
        # of training steps: the last evaluation is written one iteration further on
        steps = [line["iteration"] for line in read_metrics(path) if "total_loss" in line]
        return max(steps, default=-1) + 1

    def outdated(self):
        """str: why its record, which must be there, is none of this job; "" if it is."""
        try:
            record = json.loads(self.result_file.read_text())
            made = record["config"], record["options"]
        except (KeyError, TypeError, ValueError):
            return f"{self.result_file.name} is damaged"
        if made != (self.run.config, list(self.run.options)):
            return f"{self.result_file.name} is of another configuration"
        return ""

    def obstacle(self):
        """str: why it cannot be run now; "" if it can."""
        if isinstance(self.run, str):
            return self.run
        reason = missing(self.arm.needs)
        if not reason and self.start and not (self.root / self.start).is_file():
            reason = (
                f"it starts from {self.arm.starts_from}, whose weights are not here, or from a file of your "
                f"own, {self.arm.weights} in {dataset_root().absolute()}"
            )
        return reason

    def state(self):
        """str: how far it is, in words."""
        if self.result_file.is_file() and not isinstance(self.run, str):
            return self.outdated() or "done"
        if obstacle := self.obstacle():
            return obstacle
        iteration = self.iteration()
        return f"stopped at iteration {iteration} of {self.iterations}" if iteration else "to be run"
