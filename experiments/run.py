"""One experiment at a scale with a seed: its commands, its files and how far it is."""

import contextlib
import functools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from iso_d2.config import add_iso_config
from iso_d2.data import dataset_root
from iso_d2.data.cifar import CIFAR10, CIFAR100
from iso_d2.data.lgg import PATIENTS
from iso_d2.data.lgg import SOURCE as LGG_SOURCE
from iso_d2.engine.setup import load_config

from .experiment import Experiment, in_fold

# In the folder of an experiment that others start from
BACKBONE_FILE = "backbone.pth"
# Images of the data sets that can be incomplete or whose size says how long an epoch is
IMAGES = {
    "cifar10_train": 50_000,
    "cifar100_train": 50_000,
    "coco_pbc_train": 1000,
    "coco_pbc_chips_train": 3330,
    "lgg_train": 3347,
    "lgg_image_train": 3340,
    "shapes_train": 240,
    **{
        f"lgg_fold{fold}of5_train": sum(p.slices for p in PATIENTS.values() if p.index % 5 != fold)
        for fold in range(5)
    },
}
# Beginning of a data set's name -> the folders below the data set root of which it needs one, and what to do
SOURCES = {
    "cifar10_": (CIFAR10.folders.values(), "run tools/prepare_cifar.py"),
    "cifar100_": (CIFAR100.folders.values(), "run tools/prepare_cifar.py"),
    "coco_": (["coco/val2017"], "run tools/make_coco_subset.py again"),
    "lgg_": (["lgg-mri-segmentation/kaggle_3m"], f"get the whole set, {LGG_SOURCE}"),
}
# Keys that say where and from what a training runs, not what it is
ELSEWHERE = ("OUTPUT_DIR", "SEED", "MODEL.DEVICE", "MODEL.WEIGHTS", "VERSION")


@dataclass(frozen=True)
class Run:
    """An experiment at a scale with a seed."""

    experiment: Experiment
    scale: str  # one of SCALES
    seed: int  # SEED of the training
    root: Path  # the repository; commands run there and everything is written below it
    device: str = ""  # MODEL.DEVICE; "": the CPU, but at full scale as the config says

    @property
    def name(self):
        return f"{self.experiment.name} seed {self.seed}"

    @property
    def setting(self):
        """Setting: how it is trained; a string, the reason, if it is not at this scale."""
        return self.experiment.settings[self.scale]

    @property
    def folder(self):
        """Path: of checkpoints and logs, relative to the root."""
        return Path("output", "reproduce", self.scale, self.experiment.name, f"seed{self.seed}")

    @property
    def record_file(self):
        """Path: of the record, absolute."""
        name = f"{self.experiment.name}-seed{self.seed}.json"
        return self.root / "results" / "reproduction" / self.scale / name

    @property
    def start(self):
        """str: checkpoint from which it starts: the user's own, else another experiment's; "" for none."""
        if not self.experiment.starts_from:
            return ""
        own = [dataset_root() / weights for weights in self.experiment.weights]
        if own and all(path.is_file() for path in own):
            return str(own[0])
        return str(self.folder.parents[1] / self.experiment.starts_from / f"seed{self.seed}" / BACKBONE_FILE)

    def options(self):
        """list[str]: KEY VALUE pairs of the training."""
        device = self.device or ("" if self.scale == "full" else "cpu")
        pairs = ["OUTPUT_DIR", str(self.folder), "SEED", str(self.seed)]
        own = [in_fold(option, self.seed) for option in self.setting.options]
        pairs += [*(["MODEL.DEVICE", device] if device else []), *own]
        return [*pairs, "MODEL.WEIGHTS", self.start] if self.start else pairs

    def commands(self):
        """list[list[str]]: to be run one after the other in the root."""
        base = [sys.executable, "tools/train_net.py", "--resume"]
        options = ["--config-file", self.setting.config, *self.options()]
        test = ["DATASETS.TEST", f"('{self.setting.evaluate}',)"]
        evaluation = [[*base, "--eval-only", *options, *test]] if self.setting.evaluate else []
        return [[*base, *options], *evaluation]

    @functools.cached_property
    def config(self):
        """CfgNode: of the training."""
        return load_config(self.root / self.setting.config, self.options())

    @functools.cached_property
    def iterations(self):
        """int: length of the training."""
        solver = self.config.SOLVER
        if solver.EPOCHS <= 0:
            return solver.MAX_ITER
        return round(solver.EPOCHS * IMAGES[self.train_set] / solver.IMS_PER_BATCH)

    @property
    def train_set(self):
        """str: name of the training set."""
        return self.config.DATASETS.TRAIN[0]

    def iteration(self):
        """int: iterations that are written in its metrics.json; 0 if there is none."""
        # of training steps: the last evaluation is written one iteration further on
        lines = read_metrics(self.root / self.folder / "metrics.json")
        return max((line["iteration"] for line in lines if "total_loss" in line), default=-1) + 1

    def outdated(self):
        """str: why its record, which must be there, is not of this run; "" if it is."""
        try:
            made = json.loads(self.record_file.read_text()).get("configuration")
        except (AttributeError, ValueError):
            return f"{self.record_file.name} is damaged"
        if made is None:
            return f"{self.record_file.name} has an old format, which does not say its configuration"
        now = configuration(self.config)
        key, *more = [key for key in sorted({*made, *now}) if made.get(key) != now.get(key)] or [""]
        if not key:
            return ""
        there, here = (values.get(key, "by default") for values in (made, now))
        others = f", and {len(more)} more" if more else ""
        return (
            f"{self.record_file.name} is of another configuration ({key} {there} there, {here} here{others})"
        )

    def obstacle(self, load=False):
        """str: why it cannot be run now; "" if it can. With `load` its data sets are read whole."""
        if isinstance(self.setting, str):
            return self.setting
        names = {*self.config.DATASETS.TRAIN, *self.config.DATASETS.TEST, self.setting.evaluate} - {""}
        reasons = dict.fromkeys(missing(name, dataset_root(), load) for name in sorted(names))
        if any(reasons):
            return " ".join(filter(None, reasons))
        if self.start and not (self.root / self.start).is_file():
            own = [
                f", or from a file of your own, {name} in {dataset_root().absolute()}"
                for name in self.experiment.weights[:1]
            ]
            return "".join(
                [f"it starts from {self.experiment.starts_from}, whose weights are not here", *own]
            )
        return ""

    def state(self):
        """str: how far it is, in words."""
        if self.record_file.is_file() and not isinstance(self.setting, str):
            why = self.outdated()
            return f"{why}: run it again, which sets that file aside" if why else "done"
        if obstacle := self.obstacle():
            return obstacle
        iteration = self.iteration()
        return f"stopped at iteration {iteration} of {self.iterations}" if iteration else "to be run"


def configuration(cfg):
    """dict: what a config sets otherwise than the defaults, key with its dots -> value as one types it.

    A new key with a default changes nothing. What says where the training runs is left out.
    """
    defaults = get_cfg()
    add_iso_config(defaults)
    usual = dict(_flat(defaults))
    return {key: value for key, value in _flat(cfg) if usual.get(key, ...) != value and key not in ELSEWHERE}


def _flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


@functools.cache
def missing(name, root, load=False):
    """str: what is wrong with a data set and what to do about it; "" if nothing is.

    Args:
        name (str): in Detectron2's catalogs.
        root (Path): of the data sets; another one is looked at again.
        load (bool): read it and count its images; without, only its folder is looked for.
    """
    if "_chips_" in name and (fault := missing(name.replace("chips_", ""), root, load)):
        return fault
    known = (source for start, source in SOURCES.items() if name.startswith(start))
    folders, advice = next(known, ([], "get the others"))
    present = not folders or any((root / folder).is_dir() for folder in folders)
    if not load and present and name in DatasetCatalog:
        return ""
    try:  # what is not there says so at once
        found = len(DatasetCatalog.get(name))
    except (KeyError, OSError, ValueError) as error:
        return str(error.args[0] if isinstance(error, KeyError) else error)
    expected = IMAGES.get(name, found)
    if found == expected:
        return ""
    return f"{name} has {found:,} of its {expected:,} images in {root.absolute()}: {advice}"


def read_metrics(path):
    """list[dict]: the lines of a metrics.json; a last one that is not written to its end does not count."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if "iteration" in line]


def command_text(command):
    """A command as one would type it: ``python`` in place of the interpreter's path."""
    words = ["python", *command[1:]]
    return " ".join(f'"{word}"' if re.search(r"^$|[^\w./=:,@%+-]", word) else word for word in words)
