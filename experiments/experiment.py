"""Which experiments there are, and the tables that compare them: what the files in tables/ say.

Source: "Deep Isometric Learning for Visual Recognition", project report, IE663, 2021.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

SCALES = ("full", "cpu")
# In the order in which the experiments are run: in so few epochs the ablation says least
FILES = ("cifar", "mri", "coco", "ablation", "signal")
# Table of the experiments that are trained for others to start from
PRETRAINING = "pretraining"
LEFT_OUT = "left out, for time"
TABLES_FOLDER = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Setting:
    """How an experiment is trained at one scale."""

    config: str  # a yaml file, relative to the repository
    options: tuple = ()  # KEY VALUE pairs after it; {fold} stands for the fold of the run
    setup: str = ""  # size and schedule in words, for the tables
    evaluate: str = ""  # a data set that is evaluated once more, after the training; "" for none


@dataclass(frozen=True)
class Experiment:
    """A network with a setting."""

    name: str  # unique; names the files of its results
    group: str  # one of GROUPS
    table: str  # name of the table whose row it is
    label: str  # what tells it apart in that table
    settings: dict  # scale -> Setting; a string: why there is none
    report: tuple = ()  # what the report gives for each metric of the table; "" for nothing
    net: str = ""  # its line in a figure by the images of a batch
    starts_from: str = ""  # name of the experiment whose backbone it starts from; "" for none
    # Checkpoints under the data set root. If all are there it starts from the first in place of that
    # experiment; the others are for what it is compared with: equal starts or none.
    weights: tuple = ()
    same_as: str = ""  # name of the experiment whose result is this one's, too, at full scale; "" for none
    folds: int = 0  # its runs are so many folds of the patients, seed 1 is fold 0; 0: any seeds


@dataclass(frozen=True)
class Metric:
    """A figure of a run."""

    heading: str = ""  # its exact name and unit
    dataset: str = ""  # on which it is measured, with {fold} in it; "" is the loss of the training itself
    name: str = ""  # of the evaluator's result
    digits: int = 1  # after the decimal point
    last: int = 1  # the mean of so many evaluations at the end of the training; 1: the one after it
    part: str = ""  # heading of the part of the table to which it belongs; "" for none
    unit: str = "{}"  # how its values are written in a verdict, with {} in their place
    lower: bool = False  # whether lower values are better


@dataclass(frozen=True)
class Table:
    """A table that compares experiments."""

    name: str  # names its figures
    title: str  # heading
    metrics: tuple  # its figures, Metric
    experiments: tuple  # its rows, Experiment
    protocol: str = ""  # in what our runs differ from the report's
    curve: Metric | None = None  # what its figure shows, beside the loss
    by_batch: bool = False  # its figure shows that measure by the images of a batch, in place of the curves
    samples: str = ""  # "mri" or "coco", whose pictures of predictions are drawn; "" for none


def read_tables(path):
    """list[Table]: the tables of a file.

    Args:
        path (Path): yaml with a ``group`` and ``tables``. A table has the fields of :class:`Table`;
            ``curve`` is a metric or the name of one (default: the first). For each scale, ``scales`` holds
            ``setup``, ``options`` and ``evaluate`` of all its experiments, or a string: why there are none.
            An experiment has the fields of :class:`Experiment` (``folds`` is given to the table) and, in
            place of ``settings``, a text for each scale: ``CONFIG KEY VALUE ...`` (a list is joined).
    """
    content = CfgNode.load_yaml_with_base(str(path))
    return [_table(content["group"], **entry) for entry in content["tables"]]


def _table(group, name, scales, experiments, title="", metrics=(), curve=None, folds=0, **more):
    metrics = tuple(Metric(**metric) for metric in metrics)
    if isinstance(curve, dict):
        curve = Metric(**curve)
    else:
        curve = next((metric for metric in metrics if curve in (None, metric.name)), None)
    rows = tuple(_experiment(group, name, scales, folds=folds, **row) for row in experiments)
    return Table(name, title, metrics, rows, curve=curve, **more)


def _experiment(group, table, scales, name, label, full=None, cpu=None, **more):
    texts = {"full": full, "cpu": cpu}
    settings = {scale: _setting(scales.get(scale, LEFT_OUT), text) for scale, text in texts.items()}
    if "same_as" in more:
        settings["full"] = f"the same as {more['same_as']}"
    more = {key: tuple(value) if isinstance(value, list) else value for key, value in more.items()}
    return Experiment(name, group, table, label, settings, **more)


def _setting(common, text):
    if isinstance(common, str) or text is None:
        return common if isinstance(common, str) else LEFT_OUT
    config, *own = shlex.split(text if isinstance(text, str) else " ".join(text))
    options = (*shlex.split(common.get("options", "")), *own)
    return Setting(config, options, common["setup"], common.get("evaluate", ""))


TABLES = [table for name in FILES for table in read_tables(TABLES_FOLDER / f"{name}.yaml")]
EXPERIMENTS = [experiment for table in TABLES for experiment in table.experiments]
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
GROUPS = tuple(dict.fromkeys(experiment.group for experiment in EXPERIMENTS))


def in_fold(text, seed):
    """str: the text with the fold of a seed, of an experiment with folds, in place of {fold}."""
    return text.replace("{fold}", str(seed - 1))


def in_order():
    """list[Experiment]: all, as they are run: the report's own first."""
    return sorted(EXPERIMENTS, key=lambda experiment: not experiment.report)
