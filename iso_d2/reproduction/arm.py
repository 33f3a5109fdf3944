"""What an experiment, an arm, consists of.

An arm is one network with one set of hyperparameters. At scale "full" it has the report's size and schedule,
at "medium" and "small" ones that a CPU can train in a quarter of an hour and in minutes.
"""

from dataclasses import dataclass

SCALES = ("full", "medium", "small")
GROUPS = ("cifar", "mri", "coco", "signal")


@dataclass(frozen=True)
class Run:
    """How an arm is trained at one scale.

    Args:
        net (str): the network as the tables name it.
        config (str): a file in ``configs/``.
        options (tuple[str]): KEY VALUE pairs after it.
        setup (str): size and schedule in words, for the tables.
        seconds (float or None): a rough guess of the seconds an iteration takes on one CPU core, for the
            remaining time until something has been measured; None: no guess.
        evaluate (str): a data set that is evaluated once more, after the training; "" for none.
    """

    net: str
    config: str
    options: tuple
    setup: str
    seconds: float | None = None
    evaluate: str = ""


@dataclass(frozen=True)
class Arm:
    """One experiment.

    Args:
        name (str): unique; names the files of its results.
        group (str): one of GROUPS.
        table (str): key of the table in :mod:`.tables` whose row it is.
        label (str): what tells it apart in that table.
        needs (tuple[str]): data that it needs, keys of :data:`.needs.NEEDS`.
        full (Run or str): how it is trained at full scale; a string: why not.
        medium, small (Run or str): the same at these scales.
        starts_from (str): name of the arm whose backbone it starts from; "" for none.
        same_as (str): name of the arm whose result is this one's, too, at full scale; "" for none.
        weights (str): checkpoint under the data set root that is taken in place of that arm, if it and
            `counterpart_weights`, that of the arm it is compared with, are there: equal starts or none.
    """

    name: str
    group: str
    table: str
    label: str
    needs: tuple
    full: Run | str
    medium: Run | str
    small: Run | str
    starts_from: str = ""
    weights: str = ""
    counterpart_weights: str = ""
    same_as: str = ""


def options(**keys):
    """KEY VALUE pairs of keyword arguments, in whose names ``__`` stands for a dot."""
    return tuple(text for key, value in keys.items() for text in (key.replace("__", "."), str(value)))


# On a CPU: no pictures, no processes beside the training's own
CPU_COMMON = options(TEST__VISUALIZE=0, DATALOADER__NUM_WORKERS=0)
# Table of the arms that are trained for others to start from
PRETRAINING = "pretraining"
# Why an arm has no run at a scale
ONLY_FULL = "left out, for time"
ONLY_SMALL = "at small scale only"
LEFT_OUT = {"medium": ONLY_FULL, "small": ONLY_FULL}
