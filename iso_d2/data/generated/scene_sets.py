"""shapes_train, shapes_tune, shapes_test: drawn street scenes, made on first use, that need no download.

Each image has boxes and polygon masks of the visible part of every object (a COCO file, evaluated with
COCOEvaluator) and a label image for semantic segmentation: 0 background, 1 person, 2 bicycle, 3 car.

    shapes_sem_seg_train, ...       the label images alone, evaluated with SemSegEvaluator
    shapes_panoptic_train, ...      the annotations, and label images as PanopticFPN needs them: 0 for all
                                    things, which it takes for no stuff, 1 background
"""

import functools
import json

import cv2
import numpy as np
from PIL import Image

from ..catalog import cached, register
from ..coco.annotations import load_coco
from .scene_drawing import draw_scene

CLASSES = ["person", "bicycle", "car"]
# Part of the folder's name: raise it whenever the drawings or their files change, or old caches stay in use.
VERSION = 3
# Images of each split, and the number its seeds start with
SPLITS = {"train": (240, 0), "test": (60, 1), "tune": (60, 2)}
HEIGHT, WIDTH = 128, 160


def make_shapes(folder, num_images, seed):
    """Draw a set of scenes and write it down. Image i depends on (seed, i) alone.

    Args:
        folder (Path): an existing folder; gets ``images/*.jpg``, ``sem_seg/*.png`` with the classes,
            ``stuff/*.png`` with 1 for the background, and ``annotations.json``.
        num_images (int): how many.
        seed (int): of the drawings.
    """
    for name in ("images", "sem_seg", "stuff"):
        (folder / name).mkdir()
    images, annotations = [], []
    for index in range(num_images):
        image, classes, masks = draw_scene(np.random.default_rng([seed, index]), HEIGHT, WIDTH)
        stem = f"{index:06d}"
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for category, mask in zip(classes, masks, strict=True):
            labels[mask] = category + 1
            annotation = {"id": len(annotations) + 1, "image_id": index, "category_id": category + 1}
            annotations.append({**annotation, **_describe(mask), "iscrowd": 0})
        Image.fromarray(image).save(folder / "images" / f"{stem}.jpg", quality=92)
        Image.fromarray(labels).save(folder / "sem_seg" / f"{stem}.png")
        Image.fromarray((labels == 0).astype(np.uint8)).save(folder / "stuff" / f"{stem}.png")
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
    # OpenCV's contours run through pixel centres. On a grid twice as fine they pass between the centres of
    # the pixels inside and outside, so that rasterising the polygon gives the same mask again.
    fine = mask.repeat(2, axis=0).repeat(2, axis=1).astype(np.uint8)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return {
        "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
        "area": int(mask.sum()),
        "segmentation": [((contour + 0.5) / 2).ravel().tolist() for contour in contours],
    }


def _load(split, kind=""):
    num_images, seed = SPLITS[split]
    folder = cached(f"shapes_{split}-v{VERSION}", lambda new: make_shapes(new, num_images, seed))
    # The classes of the annotations belong to the sets that have them.
    name = f"shapes_{split}" if kind == "sem_seg_" else f"shapes_{kind}{split}"
    hint = f"Remove {folder}: it is then made again."
    dataset_dicts = load_coco(name, folder / "annotations.json", folder / "images", hint)
    labels = folder / ("stuff" if kind == "panoptic_" else "sem_seg")
    for record in dataset_dicts:
        record["sem_seg_file_name"] = str(labels / f"{record['image_id']:06d}.png")
        if kind == "sem_seg_":
            del record["annotations"]
    return dataset_dicts


_LABELS = {"stuff_classes": ["background", *CLASSES], "ignore_label": 255}
_KINDS = {
    "": {"thing_classes": CLASSES, **_LABELS},
    "sem_seg_": {"evaluator_type": "sem_seg", **_LABELS},
    "panoptic_": {"thing_classes": CLASSES, "stuff_classes": ["things", "background"], "ignore_label": 255},
}
for _split in SPLITS:
    for _kind, _metadata in _KINDS.items():
        register(f"shapes_{_kind}{_split}", functools.partial(_load, _split, _kind), **_metadata)
