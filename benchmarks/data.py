"""Images a second of each data path against what its model takes in training."""

import itertools
import logging
from typing import NamedTuple

from detectron2.data import DatasetCatalog

from iso_d2.data.batches import in_memory
from iso_d2.engine import Trainer, build_optimizer

from .networks import load_model, model_penalty, training_step
from .report import Table, judge
from .timing import clock, compare, quartiles

# Data may cost this share of a training step at most
TARGET_SHARE = 0.05

logger = logging.getLogger(__name__)


class DataPath(NamedTuple):
    """A data path and the config, under configs/, whose model it feeds."""

    name: str
    config: str
    dataset: str
    cpu_batch: int  # images a step on a CPU, where the config's own would take minutes
    opts: tuple = ()  # more KEY VALUE pairs


DETECTOR, CLASSIFIER = "risonet50_frcnn_fpn.yaml", "cifar/risonet18_cifar10.yaml"
# The first of each line whose data there are is measured: generated ones can always be made.
PATHS = (
    [DataPath("detection mapper, generated shapes", DETECTOR, "shapes_train", 1)],
    [DataPath("detection mapper, COCO subset", DETECTOR, "coco_pbc_train", 1)],
    [
        DataPath("CIFAR-10 in memory", CLASSIFIER, "cifar10_train", 32),
        DataPath("shapes of CIFAR's size, in memory", CLASSIFIER, "shapes_cls_train", 32),
    ],
    [
        DataPath("LGG in memory", "isounet_lgg.yaml", "lgg_train", 1),
        DataPath("phantoms in memory", "quick/isounet_phantom.yaml", "phantom_train", 8),
    ],
)


def data_paths():
    """The paths whose data there are: list[DataPath]."""
    return [path for line in PATHS for path in itertools.islice(filter(is_there, line), 1)]


def is_there(path):
    """Whether the data set of a path is on this machine; the log says why not."""
    try:
        DatasetCatalog.get(path.dataset)
    except (OSError, ValueError) as error:
        logger.info("%s is not measured: %s", path.dataset, error)
        return False
    return True


def training_loop(loader, step, seconds, rounds):
    """Time a loop that waits for a batch and then makes a step with it, as a trainer does.

    Two steps come first, unmeasured; the next ones go on until `rounds` or, after three, `seconds`. Returns
    two lists: the seconds of waiting, and of the step itself, by step.
    """
    batches = iter(loader)
    for batch in itertools.islice(batches, 2):
        step(batch)
    waits, steps = [], []
    while len(steps) < rounds and (len(steps) < 3 or sum(waits) + sum(steps) < seconds):
        start = clock()
        batch = next(batches)
        ready = clock()
        step(batch)
        waits.append(ready - start)
        steps.append(clock() - ready)
    return waits, steps


def measure_data(options, seconds, paths=None):
    """The part "data": list[Table]. The models train without the penalty, so that they take all the more."""
    paths = data_paths() if paths is None else paths
    rows = [_measure_path(path, options, seconds / len(paths)) for path in paths]
    title = (
        "Data paths: images a second that they give, without a model, and that the model takes in training; "
        "of a loop of both, the wait for data as a share of the step"
    )
    return [Table(title, rows)]


def training_of(path, options, penalised=False):
    """Config and training step of a path's model: CfgNode, and a function of a batch with its optimizer.

    With `penalised` the step has the config's penalty. The learning rate is next to 0.
    """
    opts = ["DATASETS.TRAIN", (path.dataset,), "DATASETS.TEST", (), *path.opts]
    if options.device == "cpu":
        opts += ["SOLVER.IMS_PER_BATCH", path.cpu_batch]
    model, cfg = load_model(path.config, options, opts)
    optimizer = build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    penalty = model_penalty(model, cfg) if penalised else None
    added = penalty and (lambda: penalty()[0])
    return cfg, training_step(model, options, optimizer=optimizer, penalty=added)


def _measure_path(path, options, seconds):
    cfg, step = training_of(path, options)
    size = cfg.SOLVER.IMS_PER_BATCH
    alone = cfg.clone()
    alone.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False])
    batches = iter(Trainer.build_train_loader(alone))
    given = compare({"batch": lambda: next(batches)}, options.repeats, seconds / 4).per_second("batch", size)

    waits, steps = training_loop(Trainer.build_train_loader(cfg), step, seconds / 2, options.repeats)
    share = quartiles([wait / (wait + busy) for wait, busy in zip(waits, steps, strict=True)])
    taken = size / quartiles(steps)["median"]
    return {
        "data": path.name,
        "config": path.config,
        "batch": size,
        "workers": 0 if in_memory(cfg, cfg.DATASETS.TRAIN) else cfg.DATALOADER.NUM_WORKERS,
        "images / s, one process": given,
        "model's images / s": taken,
        "given over taken, one process": given["median"] / taken,
        "wait over step": share,
        "n": len(steps),
        "target": judge(share, at_most=TARGET_SHARE, percent=True),
    }
