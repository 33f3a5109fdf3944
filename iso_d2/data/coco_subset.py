"""The report's person/bicycle/car subset of COCO.

    coco_pbc_train    the 1,000 training images where all are there, else the list of 120 of them
    coco_pbc_train8   8 of the 120 (of the 1,000 where the list of 120 is absent), to see a model overfit
    coco_pbc_test     55 images

They lie under ``coco/`` in the data set root: ``annotations/instances_person_bicycle_car_*.json`` and the
images in ``val2017/``. Crowds stay in the lists and are left out by the mapper, as in Detectron2.
"""

import functools
import logging
import os

from .checks import missing_images, read_coco_json
from .coco_json import load_coco
from .paths import cache_json, dataset_root
from .registration import register

CLASSES = ["person", "bicycle", "car"]

logger = logging.getLogger(__name__)


def _annotations(split):
    return dataset_root() / "coco" / "annotations" / f"instances_person_bicycle_car_{split}.json"


def _images():
    return dataset_root() / "coco" / "val2017"


def _hint():
    source = "from" if "DETECTRON2_DATASETS" in os.environ else "by default, without"
    return (
        f"The data set root is {dataset_root().absolute()} ({source} DETECTRON2_DATASETS). Let "
        "DETECTRON2_DATASETS=FOLDER name the folder that holds coco/, or make the subset: "
        "python tools/make_coco_subset.py (--help says how)."
    )


def _load(name, split):
    return load_coco(name, _annotations(split), _images(), _hint())


def _load_train(name):
    full, short = _annotations("train1000"), _annotations("train120")
    missing = missing_images(read_coco_json(full), _images()) if full.is_file() else None
    if missing == [] or not short.is_file():
        split, reason = "train1000", "all its images are there"
    elif missing is None:
        split, reason = "train120", f"there is no {full.name}"
    else:
        split, reason = "train120", f"{len(missing)} images of {full.name} are not in {_images()}"
    dataset_dicts = _load(name, split)
    logger.info("%s: the %d images of %s, because %s", name, len(dataset_dicts), split, reason)
    return dataset_dicts


def _load_train8(name):
    """The first 8 images of train120 (or train1000) with two classes, no crowd, no side below 20 pixels."""
    short = _annotations("train120")
    data = read_coco_json(short if short.is_file() else _annotations("train1000"), _hint())
    by_image = {}
    for annotation in data["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    data["images"] = [i for i in data["images"] if _suits_overfitting(by_image.get(i["id"], []))][:8]
    chosen = {image["id"] for image in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in chosen]
    # A file of its own: the evaluation counts the boxes of every image in the file that the metadata name.
    return load_coco(name, cache_json(name, data), _images(), _hint())


def _suits_overfitting(annotations):
    classes = {a["category_id"] for a in annotations}
    return len(classes) > 1 and all(not a.get("iscrowd") and min(a["bbox"][2:]) >= 20 for a in annotations)


register("coco_pbc_train", functools.partial(_load_train, "coco_pbc_train"), thing_classes=CLASSES)
register("coco_pbc_train8", functools.partial(_load_train8, "coco_pbc_train8"), thing_classes=CLASSES)
register("coco_pbc_test", functools.partial(_load, "coco_pbc_test", "test55"), thing_classes=CLASSES)
