"""shapes_train, shapes_tune, shapes_test: drawn street scenes, made on first use, that need no download.

Each image has boxes and polygon masks of the visible part of every object (a COCO file, evaluated with
COCOEvaluator) and a label image for semantic segmentation: 0 background, 1 person, 2 bicycle, 3 car.

    shapes_sem_seg_train, ...       the label images alone, evaluated with SemSegEvaluator
    shapes_panoptic_train, ...      the annotations, and label images as PanopticFPN needs them: 0 for all
                                    things, which it takes for no stuff, 1 background
"""

import functools
import json
import logging
import os

import cv2
import numpy as np
from PIL import Image

from ..files import make_once
from .coco_json import load_coco
from .paths import cache_root
from .registration import register
from .scenes import draw_scene

CLASSES = ["person", "bicycle", "car"]
# Part of the folder's name: raise it whenever the drawings change, or old caches stay in use.
VERSION = 2
# Images of each split, and the number its seeds start with
SPLITS = {"train": (240, 0), "test": (60, 1), "tune": (60, 2)}
HEIGHT, WIDTH = 128, 160

logger = logging.getLogger(__name__)


def make_shapes(folder, num_images, seed):
    """Draw a set of scenes and write it down.

    Image i depends on (seed, i) alone, so a longer set begins with the shorter one.

    Args:
        folder (Path): an existing folder; gets ``images/*.jpg``, ``sem_seg/*.png`` and ``annotations.json``.
        num_images (int): how many.
        seed (int): of the drawings.
    """
    for name in ("images", "sem_seg"):
        (folder / name).mkdir()
    images, annotations = [], []
    for index in range(num_images):
        scene = draw_scene(np.random.default_rng([seed, index]), HEIGHT, WIDTH)
        stem = f"{index:06d}"
        Image.fromarray(scene.image).save(folder / "images" / f"{stem}.jpg", quality=92)
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for category, mask in zip(scene.classes, scene.masks, strict=True):
            labels[mask] = category + 1
            annotation = {"id": len(annotations) + 1, "image_id": index, "category_id": category + 1}
            annotations.append({**annotation, **_describe(mask), "iscrowd": 0})
        Image.fromarray(labels).save(folder / "sem_seg" / f"{stem}.png")
        images.append({"id": index, "file_name": f"{stem}.jpg", "height": HEIGHT, "width": WIDTH})
    content = {
        "info": {"description": "generated street scenes", "version": VERSION, "seed": seed},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def _describe(mask):
    """COCO's fields of a mask without holes: bbox [x, y, width, height], area and polygons, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    # OpenCV's contours run through pixel centres. On a grid twice as fine they pass between the centres of
    # the pixels inside and outside, so that rasterising the polygon gives the same mask again.
    fine = mask.repeat(2, axis=0).repeat(2, axis=1).astype(np.uint8)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return {
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "segmentation": [((contour + 0.5) / 2).ravel().tolist() for contour in contours],
    }


def _load(split, kind=""):
    num_images, seed = SPLITS[split]
    folder = cache_root() / f"shapes_{split}-v{VERSION}"
    if not folder.is_dir():
        logger.info("drawing the %d images of shapes_%s into %s", num_images, split, folder)
    make_once(folder, lambda unfinished: make_shapes(unfinished, num_images, seed))
    hint = f"Remove {folder}: it is then made again."
    name = f"shapes_{kind}{split}"
    dataset_dicts = load_coco(name, folder / "annotations.json", folder / "images", hint)
    for record in dataset_dicts:
        record["sem_seg_file_name"] = str(folder / "sem_seg" / f"{record['image_id']:06d}.png")
    return dataset_dicts


def _load_sem_seg(split):
    dataset_dicts = _load(split)
    for record in dataset_dicts:
        del record["annotations"]
    return dataset_dicts


def _load_panoptic(split):
    dataset_dicts = _load(split, "panoptic_")
    folder = cache_root() / f"shapes_stuff_{split}-v{VERSION}"
    make_once(folder, functools.partial(_write_stuff, dataset_dicts))
    for record in dataset_dicts:
        record["sem_seg_file_name"] = str(folder / os.path.basename(record["sem_seg_file_name"]))
    return dataset_dicts


def _write_stuff(dataset_dicts, folder):
    for record in dataset_dicts:
        with Image.open(record["sem_seg_file_name"]) as file:
            background = np.asarray(file) == 0
        Image.fromarray(background.astype(np.uint8)).save(
            folder / os.path.basename(record["sem_seg_file_name"])
        )


for _split in SPLITS:
    register(
        f"shapes_{_split}",
        functools.partial(_load, _split),
        thing_classes=CLASSES,
        stuff_classes=["background", *CLASSES],
        ignore_label=255,
    )
    register(
        f"shapes_sem_seg_{_split}",
        functools.partial(_load_sem_seg, _split),
        evaluator_type="sem_seg",
        stuff_classes=["background", *CLASSES],
        ignore_label=255,
    )
    register(
        f"shapes_panoptic_{_split}",
        functools.partial(_load_panoptic, _split),
        thing_classes=CLASSES,
        stuff_classes=["things", "background"],
        ignore_label=255,
    )
