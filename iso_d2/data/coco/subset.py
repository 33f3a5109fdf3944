"""The report's person/bicycle/car subset of COCO.

    coco_pbc_train       the 1,000 training images where all are there, else the list of 120 of them
    coco_pbc_train8      8 of the 120 (of the 1,000 where the list of 120 is absent), to see a model overfit
    coco_pbc_test        55 images
    coco_pbc_test_large  further images, in neither of the others; made by ``--num-large`` only

They lie under ``coco/`` in the data set root: ``annotations/instances_person_bicycle_car_*.json`` and the
images in ``val2017/``. Crowds stay in the lists and are left out by the mapper, as in Detectron2.
"""

import logging

from ..catalog import cache_json, dataset_root, register, root_origin
from .annotations import load_coco, missing_images, read_coco_json

CLASSES = ["person", "bicycle", "car"]

logger = logging.getLogger(__name__)


def _annotations(split):
    return dataset_root() / "coco" / "annotations" / f"instances_person_bicycle_car_{split}.json"


def _images():
    return dataset_root() / "coco" / "val2017"


def _hint(option=""):
    return (
        f"The data set root is {dataset_root().absolute()} {root_origin()}. Let DETECTRON2_DATASETS=FOLDER "
        "name the folder that holds coco/, or make it: "
        f"python tools/make_coco_subset.py{option} (--help says how)."
    )


def _load_test():
    return load_coco("coco_pbc_test", _annotations("test55"), _images(), _hint())


def _load_test_large():
    file, train = _annotations("testlarge"), _annotations("train1000")
    dataset_dicts = load_coco("coco_pbc_test_large", file, _images(), _hint(" --num-large N"))
    if train.is_file():
        # Each call of the tool writes the training list, but this one only if asked to.
        trained_on = {image["id"] for image in read_coco_json(train)["images"]}
        common = [record["image_id"] for record in dataset_dicts if record["image_id"] in trained_on]
        if common:
            raise ValueError(
                f"{len(common)} images of {file} are training images in {train.name}, such as {common[0]}. "
                "Make both lists by one call of tools/make_coco_subset.py, with --num-large."
            )
    return dataset_dicts


def _load_train():
    full, short = _annotations("train1000"), _annotations("train120")
    missing = missing_images(read_coco_json(full), _images()) if full.is_file() else None
    if missing == [] or not short.is_file():
        file, reason = full, "all its images are there"
    elif missing is None:
        file, reason = short, f"there is no {full.name}"
    else:
        file, reason = short, f"{len(missing)} images of {full.name} are not in {_images()}"
    dataset_dicts = load_coco("coco_pbc_train", file, _images(), _hint())
    split = file.stem.rpartition("_")[2]
    logger.info("coco_pbc_train: the %d images of %s, because %s", len(dataset_dicts), split, reason)
    return dataset_dicts


def _load_train8():
    """The first 8 images of train120 (or train1000) with two classes, no crowd, no side below 20 pixels."""
    short = _annotations("train120")
    data = read_coco_json(short if short.is_file() else _annotations("train1000"), _hint())
    by_image = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    data["images"] = [i for i in data["images"] if _suits_overfitting(by_image[i["id"]])][:8]
    data["annotations"] = [a for image in data["images"] for a in by_image[image["id"]]]
    # A file of its own: the evaluation counts the boxes of every image in the file that the metadata name.
    return load_coco("coco_pbc_train8", cache_json("coco_pbc_train8", data), _images(), _hint())


def _suits_overfitting(annotations):
    classes = {a["category_id"] for a in annotations}
    return len(classes) > 1 and all(not a.get("iscrowd") and min(a["bbox"][2:]) >= 20 for a in annotations)


for _name, _load in (
    ("train", _load_train),
    ("train8", _load_train8),
    ("test", _load_test),
    ("test_large", _load_test_large),
):
    register(f"coco_pbc_{_name}", _load, thing_classes=CLASSES)
