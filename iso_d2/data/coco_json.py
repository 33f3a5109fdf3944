"""COCO-format data sets of any kind: read, check, register."""

import functools
import logging
import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .checks import check_images_exist, read_coco_json
from .paths import cache_json
from .registration import register

logger = logging.getLogger(__name__)


def register_coco_json(name, json_file, image_root):
    """Register one's own COCO-format data set for training and for evaluation with COCOEvaluator.

    Nothing is read until the set is used; then everything is checked first (see ``read_coco_json``).
    ``load_coco(name, json_file, image_root)`` gives the same list without any registration.

    Args:
        name (str): what DATASETS.TRAIN or DATASETS.TEST will say. An earlier set of that name is replaced.
        json_file (str or Path): annotations in COCO's instances format.
        image_root (str or Path): folder that the file names in it start from.
    """
    hint = f"The data set {name!r} was registered with this path: check it."
    register(name, functools.partial(load_coco, name, json_file, image_root, hint))


def load_coco(name, json_file, image_root, hint=""):
    """Read and check a COCO-format data set.

    Args:
        name (str): the metadata of that name get ``thing_classes``, ``json_file`` and ``image_root``.
        json_file (str or Path): annotations in COCO's instances format.
        image_root (str or Path): folder of the images.
        hint (str): what to do when files are missing.

    Returns:
        list[dict]: Detectron2's dataset dicts, without annotations of zero area.

    Raises:
        FileNotFoundError: the file, the folder or an image is missing.
        ValueError: the file is faulty (see ``read_coco_json``), or its classes are not those that the
            metadata already name.
    """
    data = read_coco_json(json_file, hint)
    check_images_exist(data, json_file, image_root, hint)

    metadata = MetadataCatalog.get(name)
    classes = [category["name"] for category in sorted(data["categories"], key=lambda entry: entry["id"])]
    if metadata.get("thing_classes", classes) != classes:
        raise ValueError(
            f"{json_file} has the categories {classes}, but {name} is a set of {metadata.thing_classes}. "
            "Take the right file, or register this one under a name of its own (register_coco_json)."
        )
    json_file = _evaluable(data, json_file)
    # Metadata refuse a second value, but the folders may have moved since an earlier load.
    vars(metadata).update(json_file=str(json_file), image_root=str(image_root))

    dataset_dicts = load_coco_json(str(json_file), str(image_root), name)
    dropped = 0
    for record in dataset_dicts:
        kept = [a for a in record["annotations"] if a["bbox"][2] > 0 and a["bbox"][3] > 0]
        dropped += len(record["annotations"]) - len(kept)
        for annotation in kept:
            # Detectron2's own transforms round a box of integers down at every step.
            annotation["bbox"] = [float(value) for value in annotation["bbox"]]
        record["annotations"] = kept
    if dropped:
        logger.warning("%s: dropped %d annotations whose box has no area", json_file, dropped)
    return dataset_dicts


def _evaluable(data, json_file):
    """The file itself, or a copy with what pycocotools' evaluation cannot do without.

    It fails without `iscrowd` (in some versions without `info`), and takes annotation id 0 for "no match".
    """
    annotations = data["annotations"]
    if "info" in data and all("iscrowd" in a and a["id"] != 0 for a in annotations):
        return json_file
    annotations = [{"iscrowd": 0, **a, "id": number} for number, a in enumerate(annotations, start=1)]
    stem = os.path.splitext(os.path.basename(json_file))[0]
    return cache_json(stem, {"info": {}, **data, "annotations": annotations})
