"""COCO-format data sets of any kind: registered, read, and checked before a training starts on them."""

import json
import logging
import math
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..catalog import cache_json, register

# Pixels by which a box may stick out of its image and still count as rounding: corners known to whole
# pixels only are off by up to one at either end. The mapper clips such boxes.
EDGE_TOLERANCE = 2.0

_NEEDED = {
    "images": {"id", "file_name", "height", "width"},
    # `area` is what COCO's evaluation sorts objects into small, medium and large by
    "annotations": {"id", "image_id", "category_id", "bbox", "area"},
    "categories": {"id", "name"},
}
_ADVICE = {"annotations": " (where there is no mask, area is box width times height)"}

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
    return cache_json(Path(json_file).stem, {"info": {}, **data, "annotations": annotations})


def read_coco_json(json_file, hint=""):
    """Read a COCO instances file and check all of it but the image files.

    Args:
        json_file (str or Path): the file.
        hint (str): what to do when it is missing; ends the message.

    Returns:
        dict: its content.

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
    except ValueError as error:
        raise ValueError(
            f"{json_file} is not valid json ({error}). It may be truncated: fetch or make it again."
        ) from error
    if fault := _first_fault(data):
        raise ValueError(f"{json_file}{fault}")
    return data


def _first_fault(data):
    """What is wrong with a file's content and what to do, to be put after its name; "" if nothing is."""
    for section, needed in _NEEDED.items():
        entries = data.get(section) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not entries:
            return (
                f" has no {section}. A COCO instances file is an object with the non-empty lists images, "
                "annotations and categories."
            )
        for index, entry in enumerate(entries):
            missing = needed - entry.keys() if isinstance(entry, dict) else needed
            if missing:
                return (
                    f": {section}[{index}] lacks {', '.join(sorted(missing))}. Each entry needs "
                    f"{', '.join(sorted(needed))}{_ADVICE.get(section, '')}."
                )
            for key, is_good, advice in _FIELDS:
                if key in entry and not is_good(entry[key]):
                    return f": {section}[{index}] has {key} {entry[key]!r}: give {advice}."
        if len({entry["id"] for entry in entries}) < len(entries):
            return f": two of the {section} have the same id. Number them anew."

    images = {image["id"]: image for image in data["images"]}
    for image in data["images"]:
        for key in ("height", "width"):
            if not isinstance(image[key], int | float) or not image[key] > 0:
                return f": image {image['file_name']} has {key} {image[key]!r}: give pixels."
    category_ids = {category["id"] for category in data["categories"]}
    for annotation in data["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None or annotation["category_id"] not in category_ids:
            key, section = ("image_id", "images") if image is None else ("category_id", "categories")
            return (
                f": annotation {annotation['id']} has {key} {annotation[key]!r}, which no entry of {section} "
                "has. Add it or drop the annotation."
            )
        if not _is_good_box(annotation["bbox"], image):
            fault = _fault_of_box(annotation["bbox"], image)
            return f": annotation {annotation['id']} in {image['file_name']}: {fault}. Mend or remove it."
    return ""


def _is_id(value):
    return isinstance(value, int | str)


def _is_area(value):
    return isinstance(value, int | float) and math.isfinite(value)


_FIELDS = (
    *((key, _is_id, "an integer") for key in ("id", "image_id", "category_id")),
    ("file_name", lambda value: isinstance(value, str), "a text"),
    ("area", _is_area, "a finite number of pixels"),
    ("iscrowd", lambda value: value in (0, 1), "0 or 1"),
)


def _is_good_box(box, image):
    # Plain comparisons: they are False for NaN, and 860,000 of them take about a second.
    try:
        x, y, width, height = box
        right, bottom = x + width, y + height
        within = (
            x >= -EDGE_TOLERANCE
            and y >= -EDGE_TOLERANCE
            and right <= image["width"] + EDGE_TOLERANCE
            and bottom <= image["height"] + EDGE_TOLERANCE
        )
        if width > 0 and height > 0:
            return within and x < image["width"] and y < image["height"] and right > 0 and bottom > 0
        return within and width >= 0 and height >= 0
    except (TypeError, ValueError):
        return False


def _fault_of_box(box, image):
    shape = f"bbox {box} must be [x, y, width, height] in pixels"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_area, box)):
        return f"{shape}, four finite numbers"
    if box[2] < 0 or box[3] < 0:
        return f"{shape}, and width and height must not be negative"
    return f"{shape}, and this one reaches out of its {image['width']}x{image['height']} image (is it XYXY?)"


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
