"""Which data an experiment needs, and whether they are there."""

import os

from ..data.catalog import dataset_root
from ..data.coco.annotations import missing_images, read_coco_json
from ..data.lgg import PATIENTS


def missing(needs):
    """What is missing of some data sets, with what to do.

    Args:
        needs (sequence of str): keys of NEEDS.

    Returns:
        str: sentences; "" if nothing is missing.
    """
    return " ".join(filter(None, map(_missing, needs)))


def _missing(need):
    try:
        return NEEDS[need]()
    except (OSError, ValueError) as error:  # there, but damaged
        return f"{need}: {error}"


def _where():
    return f"{dataset_root().absolute()} (set DETECTRON2_DATASETS to another folder)"


def _cifar(number, folders):
    if any((dataset_root() / folder).is_dir() for folder in folders):
        return ""
    return (
        f"CIFAR-{number}: neither {' nor '.join(folders)} is in {_where()}. Get it: python "
        f"tools/prepare_cifar.py cifar{number}"
    )


def _lgg():
    folder = dataset_root() / "lgg-mri-segmentation" / "kaggle_3m"
    present = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    here = sum(name in present for name in PATIENTS)
    if here == len(PATIENTS):
        return ""
    return (
        f"LGG MRI: {here} of {len(PATIENTS)} patients are in lgg-mri-segmentation/kaggle_3m in {_where()}. "
        "Get the data set: https://www.kaggle.com/mateuszbuda/lgg-mri-segmentation"
    )


def _coco():
    folder = dataset_root() / "coco"
    advice = "Make the subset: python tools/make_coco_subset.py (--help says how)"
    for split in ("train1000", "test55"):
        path = folder / "annotations" / f"instances_person_bicycle_car_{split}.json"
        if not path.is_file():
            return f"COCO: coco/annotations/{path.name} is not in {_where()}. {advice}"
        absent = missing_images(read_coco_json(path), folder / "val2017")
        if absent:
            return f"COCO: coco/val2017 in {_where()} lacks {len(absent)} images of {path.name}. {advice}"
    return ""


# Name of a need -> function that says what is missing, "" if nothing
NEEDS = {
    "cifar10": lambda: _cifar(10, ("cifar-10-batches-bin", "cifar-10-batches-py")),
    "cifar100": lambda: _cifar(100, ("cifar-100-binary", "cifar-100-python")),
    "lgg": _lgg,
    "coco": _coco,
}
