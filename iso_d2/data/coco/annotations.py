"""COCO-format data sets of any kind: registered, read, and checked before a training starts on them."""

import json
import logging
import math
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..catalog import cache_json, register
from .segmentations import fault_of_segmentation, is_finite_number

# Pixels by which a box may stick out of its image and still count as rounding: corners known to whole
# pixels only are off by up to one at either end. The mapper clips such boxes.
EDGE_TOLERANCE = 2.0

_ID = (lambda value: isinstance(value, (int, str)), "an integer")
_SIDE = (lambda value: isinstance(value, (int, float)) and value > 0, "pixels")
_AREA = (is_finite_number, "a finite number of pixels")
_FILE = (lambda value: isinstance(value, str) and _stays_inside(Path(value)), "a file of the image folder")
_ANY = (lambda value: True, "")
# What the entries of each list need, what it must be, and how to say so. COCO's evaluation sorts objects into
# small, medium and large by `area`.
_FIELDS = {
    "images": {"id": _ID, "file_name": _FILE, "height": _SIDE, "width": _SIDE},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": _ID, "bbox": _ANY, "area": _AREA},
    "categories": {"id": _ID, "name": _ANY},
}

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
    register(name, lambda: load_coco(name, json_file, image_root, hint))


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
    check_images_exist(data, json_file, Path(image_root), hint)

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
        annotations = record["annotations"]
        record["annotations"] = [a for a in annotations if min(a["bbox"][2:]) > 0]
        dropped += len(annotations) - len(record["annotations"])
        for annotation in record["annotations"]:
            # Detectron2's own transforms round a box of integers down at every step.
            annotation["bbox"] = list(map(float, annotation["bbox"]))
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
    return cache_json(Path(json_file).stem, {"info": {}, **data, "annotations": annotations})


def read_coco_json(json_file, hint=""):
    """dict: the content of a COCO instances file, all of it checked but the image files.

    Args:
        json_file (str or Path): the file.
        hint (str): what to do when it is missing; ends the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not json, lacks entries or fields, refers to unknown images or categories, or holds
            a box that is not finite, of negative size or outside its image. The first fault is named.
    """
    json_file = Path(json_file)
    if not json_file.is_file():
        raise FileNotFoundError(f"annotation file {json_file.absolute()} does not exist. {hint}")
    try:
        data = json.loads(json_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{json_file} is not valid json ({error}). It may be truncated: fetch or make it again."
        ) from error
    if fault := _first_fault(data):
        raise ValueError(f"{json_file}{fault}")
    return data


def _first_fault(data):
    """What is wrong with a file's content and what to do, to be put after its name; "" if nothing is."""
    for section, fields in _FIELDS.items():
        entries = data.get(section) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not entries:
            return (
                f" has no {section}. A COCO instances file is an object with the non-empty lists images, "
                "annotations and categories."
            )
        for index, entry in enumerate(entries):
            missing = fields.keys() - (entry if isinstance(entry, dict) else {})
            if missing:
                advice = " (without a mask, area is box width times height)" if "area" in missing else ""
                return (
                    f": {section}[{index}] lacks {', '.join(sorted(missing))}. Each entry needs "
                    f"{', '.join(sorted(fields))}{advice}."
                )
            for key, (is_good, wanted) in fields.items():
                if not is_good(entry[key]):
                    return f": {section}[{index}] has {key} {entry[key]!r}: give {wanted}."
        if len({type(entry["id"]) for entry in entries}) > 1:
            return f": some ids of the {section} are texts, others numbers. Take one kind."
        if len({entry["id"] for entry in entries}) < len(entries):
            return f": two of the {section} have the same id. Number them anew."

    images = {image["id"]: image for image in data["images"]}
    known = {"image_id": images, "category_id": {category["id"] for category in data["categories"]}}
    for annotation in data["annotations"]:
        name = f": annotation {annotation['id']}"
        for key, ids in known.items():
            if annotation[key] not in ids:
                section = "images" if key == "image_id" else "categories"
                return (
                    f"{name} has {key} {annotation[key]!r}, which no entry of {section} has. Add it or drop "
                    "the annotation."
                )
        if annotation.get("iscrowd", 0) not in (0, 1):
            return f"{name} has iscrowd {annotation['iscrowd']!r}: give 0 or 1."
        image = images[annotation["image_id"]]
        if fault := _fault_of_box(annotation["bbox"], image["width"], image["height"]):
            return (
                f"{name} in {image['file_name']}: bbox {annotation['bbox']} must be [x, y, width, height] in "
                f"pixels, {fault}. Mend or remove it."
            )
        segmentation = annotation.get("segmentation")
        if segmentation and (fault := fault_of_segmentation(segmentation, image["height"], image["width"])):
            return f"{name} in {image['file_name']}: its segmentation must be {fault}. Mend or remove it."
    return ""


def _stays_inside(path):
    return not path.is_absolute() and ".." not in path.parts


def _fault_of_box(box, width, height):
    try:
        x, y, box_width, box_height = box
        finite = math.isfinite(x + y + box_width + box_height)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        return "four finite numbers"
    if box_width < 0 or box_height < 0:
        return "and width and height must not be negative"
    right, bottom = x + box_width, y + box_height
    inside = min(x, y) >= -EDGE_TOLERANCE and max(right - width, bottom - height) <= EDGE_TOLERANCE
    if box_width > 0 and box_height > 0:  # then some of it must be in the image
        inside = inside and x < width and y < height and right > 0 and bottom > 0
    return "" if inside else f"and this one reaches out of its {width}x{height} image (is it XYXY?)"


def missing_images(data, image_root):
    """list[str]: names of the images of a COCO file's content that are not in the folder (Path)."""
    # One listing instead of a look-up per image: COCO has 118,287, often on a network disk.
    present = {path.name for path in image_root.iterdir()} if image_root.is_dir() else set()
    names = (image["file_name"] for image in data["images"])
    return [name for name in names if name not in present and not (image_root / name).is_file()]


def check_images_exist(data, json_file, image_root, hint=""):
    """Raise FileNotFoundError when the folder or an image does not exist; the first few are named."""
    if not image_root.is_dir():
        raise FileNotFoundError(f"image folder {image_root.absolute()} of {json_file} does not exist. {hint}")
    missing = missing_images(data, image_root)
    if missing:
        named = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} of the {len(data['images'])} images of {json_file} are not in "
            f"{image_root.absolute()}: {named}. {hint}"
        )
