"""Images a second that one CPU core prepares, against those that one GPU is estimated to train on."""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from PIL import Image

from iso_d2.data.batches import in_memory
from iso_d2.data.mappers import build_mapper
from iso_d2.engine import Trainer, build_optimizer

from .data import is_there
from .estimates import H100, count, seconds
from .launches import launches
from .networks import load_model, training_step
from .report import Table
from .timing import quartiles

# Photographs as COCO has them: pixels, and a quality that gives about its 150 kB
WIDTH, HEIGHT, QUALITY = 640, 480, 85
PHOTOGRAPHS = 16
LEAST_ROUNDS = 5


class Feed(NamedTuple):
    """A data path, the config under configs/ that it belongs to, and KEY VALUE pairs.

    Without a data set its images are JPEG files of 640x480 pixels, made for the measurement.
    """

    name: str
    config: str
    dataset: str | None = None
    opts: tuple = ()


CIFAR, PHOTOGRAPH = "cifar/risonet18_cifar10.yaml", "JPEG 640x480"
FLIP, SHIFT = ["HorizontalFlip", {"p": 0.5}], ["Affine", {"rotate": [-15, 15], "scale": [0.9, 1.1]}]
FEEDS = (
    Feed(f"{PHOTOGRAPH}, shorter side 800", "risonet50_frcnn_fpn.yaml", None, ("INPUT.MAPPER", "detectron2")),
    Feed(f"{PHOTOGRAPH}, to 512x512", "risonet50_frcnn_fpn.yaml"),
    Feed(f"{PHOTOGRAPH}, random crop to 224x224", "imagenet/risonet50_imagenet.yaml"),
    Feed("generated scenes 128x160, flip", "quick/risonet18_frcnn_shapes.yaml", "shapes_train"),
    Feed("LGG 224x224, flip and affine", "isounet_lgg.yaml", "lgg_train",
         ("INPUT.ALBUMENTATIONS.TRAIN", [FLIP, SHIFT])),
    Feed("CIFAR-10 in memory, flip", CIFAR, "cifar10_train"),
    Feed("CIFAR-10 in memory, flip and crop", CIFAR, "cifar10_train",
         ("INPUT.CLASSIFICATION.CROP_PADDING", 4)),
)  # fmt: skip


def photographs(folder, number=PHOTOGRAPHS):
    """Write JPEG files with a photograph's spectrum, and return dataset dicts with four boxes: list[dict].

    The amplitude of their noise falls with the frequency, 1 / f.
    """
    generator = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / WIDTH)
    records = []
    for i in range(number):
        noise = np.fft.rfft2(generator.standard_normal((3, HEIGHT, WIDTH))) * amplitude
        planes = np.fft.irfft2(noise, s=(HEIGHT, WIDTH))
        pixels = 128 + 50 * planes / planes.std()
        path = Path(folder) / f"{i}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(path, quality=QUALITY)
        corners = generator.uniform(0, 0.5, (4, 2)) * (WIDTH, HEIGHT)
        boxes = np.concatenate([corners, corners + (WIDTH / 4, HEIGHT / 4)], axis=1).tolist()
        annotations = [{"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for b in boxes]
        record = {"file_name": str(path), "image_id": i, "height": HEIGHT, "width": WIDTH, "label": 0}
        records.append({**record, "annotations": annotations})
    return records


def measure_appetite(options, limit, feeds=FEEDS):
    """The part "appetite": list[Table]. CPU time is that of this process, so that others do not count."""
    feeds = [feed for feed in feeds if feed.dataset is None or is_there(feed)]
    with tempfile.TemporaryDirectory() as folder:
        records = photographs(folder)
        size = np.mean([Path(record["file_name"]).stat().st_size for record in records])
        rows = [_measure_feed(feed, records, options, limit / len(feeds)) for feed in feeds]
    title = (
        f"Images a second of one CPU core, by the CPU time of one process, and of one {H100.name} "
        f"by estimate (bf16, without penalty); the JPEG files have {size / 1000:.0f} kB"
    )
    return [Table(title, rows)]


def _measure_feed(feed, records, options, limit):
    opts = ["SOLVER.BASE_LR", 1e-6, *feed.opts]
    model, cfg = load_model(
        feed.config, options, opts + (["DATASETS.TRAIN", (feed.dataset,)] * bool(feed.dataset))
    )
    whole = bool(feed.dataset) and in_memory(cfg, [feed.dataset])
    if whole:
        loader = iter(Trainer.build_train_loader(cfg))
        make, number = (lambda: next(loader)), cfg.SOLVER.IMS_PER_BATCH
    else:
        mapper = build_mapper(cfg, is_train=True)
        records = DatasetCatalog.get(feed.dataset)[:PHOTOGRAPHS] if feed.dataset else records
        make, number = (lambda: [mapper(record) for record in records]), len(records)
    batch = make()
    rates, start = [], time.perf_counter()
    while len(rates) < LEAST_ROUNDS or (len(rates) < options.repeats and time.perf_counter() - start < limit):
        before = time.process_time()
        make()
        rates.append(number / (time.process_time() - before))
    step = training_step(model, options, optimizer=build_optimizer(cfg, model))

    def first(images):
        return {key: value[:images] for key, value in batch.items()} if whole else batch[:images]

    step(first(1))  # makes the buffers of the momentum
    one, two = (count(lambda n=n: step(first(n))) for n in (1, 2))
    images = cfg.SOLVER.IMS_PER_BATCH
    taken = images / seconds(one.of(images, two).halved(), H100, H100.half)
    given = quartiles(rates)
    return {
        "data": feed.name,
        "config": feed.config,
        "images / s of a core": given,
        "n": len(rates),
        "batch": images,
        "1e9 multiply-adds an image": (two.multiply_adds - one.multiply_adds) / 1e9,
        "MB an image": (two.bytes - one.bytes) / 2e6,
        "launches a step": one.of(images, two).launches,
        "launches of a batch's augmentation": launches(make) if whole else None,
        "images / s of a GPU, estimated": taken,
        "cores": taken / given["median"],
        "precision": "bf16",
    }
