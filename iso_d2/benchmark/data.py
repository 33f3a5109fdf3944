"""Images a second of each data path against what its model takes in training."""

import itertools
import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from ..data.arrays import LabelledImages, register_labelled_images
from ..data.batches import in_memory
from ..engine import Trainer, build_optimizer
from ..engine.trainer import build_mapper
from .networks import load_model
from .report import Table, judge
from .timing import compare, quartiles

# Data may cost this share of a training step at most
TARGET_SHARE = 0.05
# Images of the generated array that takes CIFAR's place: as many as there are in training
CIFAR_SIZE = 50_000
GENERATED = "benchmark_cifar"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataPath:
    """A data path and the config whose model it feeds.

    Args:
        name (str): in the table.
        config (str): relative to configs/.
        dataset (str): registered name.
        cpu_batch (int): images a step on a CPU, where the config's own would take minutes.
        opts (tuple): more KEY VALUE pairs.
    """

    name: str
    config: str
    dataset: str
    cpu_batch: int
    opts: tuple = ()


def data_paths():
    """The paths whose data there are; generated ones take the place of CIFAR and LGG where these are missing.

    Returns:
        list[DataPath]
    """
    detection = "risonet50_frcnn_fpn.yaml"
    paths = [DataPath("detection mapper, generated shapes", detection, "shapes_train", 1)]
    if _is_there("coco_pbc_train"):
        paths.append(DataPath("detection mapper, COCO subset", detection, "coco_pbc_train", 1))
    cifar = "cifar/risonet18_cifar10.yaml"
    if _is_there("cifar10_train"):
        paths.append(DataPath("CIFAR-10 in memory", cifar, "cifar10_train", 32))
    else:
        register_labelled_images(
            GENERATED, noise_as_cifar, MetadataCatalog.get("cifar10_train").thing_classes
        )
        paths.append(DataPath("noise of CIFAR's size, in memory", cifar, GENERATED, 32))
    if _is_there("lgg_train"):
        paths.append(DataPath("LGG in memory", "isounet_lgg.yaml", "lgg_train", 1))
    else:
        paths.append(DataPath("phantoms in memory", "quick/isounet_phantom.yaml", "phantom_train", 8))
    return paths


def noise_as_cifar():
    """LabelledImages as many and as large as those of CIFAR-10, of random pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (CIFAR_SIZE, 3, 32, 32), dtype=np.uint8)
    return LabelledImages(images, rng.integers(0, 10, CIFAR_SIZE))


def _is_there(name):
    try:
        DatasetCatalog.get(name)
    except (OSError, ValueError) as error:
        logger.info("%s is not measured: %s", name, error)
        return False
    return True


def training_loop(loader, step, seconds, rounds):
    """Time a loop that waits for a batch and then makes a step with it, as a trainer does.

    Two steps come first, unmeasured; the next ones go on until `rounds` or, after three, `seconds`.

    Args:
        loader (iterable): endless, of batches.
        step (callable): takes a batch; has ended when it returns.
        seconds (float): for the measured steps.
        rounds (int): how many steps at most.

    Returns:
        tuple[list[float], list[float]]: seconds of waiting, and of the step itself, by step.
    """
    batches = iter(loader)
    for batch in itertools.islice(batches, 2):
        step(batch)
    waits, steps = [], []
    while len(steps) < rounds and (len(steps) < 3 or sum(waits) + sum(steps) < seconds):
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        step(batch)
        waits.append(ready - start)
        steps.append(time.perf_counter() - ready)
    return waits, steps


def measure_data(options, seconds, paths=None):
    """The part "data": list[Table]. The models train without the penalty, so that they take all the more.

    Args:
        options (Options): device, dtype, repeats.
        seconds (float): time for it.
        paths (list[DataPath] or None): in place of all that there are.
    """
    paths = data_paths() if paths is None else paths
    rows = [_measure_path(path, options, seconds / len(paths)) for path in paths]
    title = (
        "Data paths: images a second that they give, without a model, and that the model takes in training; "
        "of a loop of both, the wait for data as a share of the step"
    )
    return [Table(title, rows)]


def _measure_path(path, options, seconds):
    opts = ["DATASETS.TRAIN", (path.dataset,), "DATASETS.TEST", (), *path.opts]
    if options.device == "cpu":
        opts += ["SOLVER.IMS_PER_BATCH", path.cpu_batch]
    model, cfg = load_model(path.config, options, opts)
    alone, workers = _given(cfg, options, seconds / 4)

    optimizer = build_optimizer(cfg, model)

    def step(batch):
        with EventStorage(), options.autocast():
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if options.device == "cuda":
            torch.cuda.synchronize()

    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    waits, steps = training_loop(Trainer.build_train_loader(cfg), step, seconds / 2, options.repeats)
    share = quartiles([wait / (wait + busy) for wait, busy in zip(waits, steps, strict=True)])
    given, taken = alone["median"], cfg.SOLVER.IMS_PER_BATCH / quartiles(steps)["median"]
    return {
        "data": path.name,
        "config": path.config,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "workers": workers,
        "images / s, one process": alone,
        "model's images / s": taken,
        "given over taken, one process": given / taken,
        "wait over step": share,
        "n": len(steps),
        "target": judge(share, at_most=TARGET_SHARE, percent=True),
    }


def _given(cfg, options, seconds):
    """Quartiles of images a second of one process, without the model, and the loader's worker processes."""
    if not in_memory(cfg, cfg.DATASETS.TRAIN):
        return _mapper_rate(cfg, options, seconds), cfg.DATALOADER.NUM_WORKERS
    batches = iter(Trainer.build_train_loader(cfg))
    measured = compare({"batch": lambda: next(batches)}, options.repeats, seconds, options.device)
    return quartiles([cfg.SOLVER.IMS_PER_BATCH / t for t in measured.times["batch"]]), 0


def _mapper_rate(cfg, options, seconds):
    mapper = build_mapper(cfg, is_train=True)
    records = itertools.cycle(DatasetCatalog.get(cfg.DATASETS.TRAIN[0]))
    measured = compare({"image": lambda: mapper(next(records))}, options.repeats, seconds)
    return quartiles([1 / t for t in measured.times["image"]])
