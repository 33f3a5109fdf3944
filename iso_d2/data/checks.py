"""Checks of COCO-format annotations at load, so that a training never starts on data that would spoil it."""

import json
import math
from pathlib import Path

# Pixels by which a box may stick out of its image and still count as rounding: corners known to whole
# pixels only are off by up to one at either end. The mapper clips such boxes.
EDGE_TOLERANCE = 2.0

_NEEDED = {
    "images": {"id", "file_name", "height", "width"},
    # `area` is what COCO's evaluation sorts objects into small, medium and large by
    "annotations": {"id", "image_id", "category_id", "bbox", "area"},
    "categories": {"id", "name"},
}


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

    for section, needed in _NEEDED.items():
        entries = data.get(section) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not entries:
            raise ValueError(
                f"{json_file} has no {section}. A COCO instances file is an object with the non-empty lists "
                "images, annotations and categories."
            )
        for index, entry in enumerate(entries):
            missing = needed - entry.keys() if isinstance(entry, dict) else needed
            if missing:
                raise ValueError(
                    f"{json_file}: {section}[{index}] lacks {', '.join(sorted(missing))}. Each entry needs "
                    f"{', '.join(sorted(needed))}{_ADVICE.get(section, '')}."
                )
            _check_types(entry, f"{json_file}: {section}[{index}]")
        if len({entry["id"] for entry in entries}) < len(entries):
            raise ValueError(f"{json_file}: two of the {section} have the same id. Number them anew.")

    images = {image["id"]: image for image in data["images"]}
    for image in data["images"]:
        _check_size(image, json_file)
    category_ids = {category["id"] for category in data["categories"]}
    for annotation in data["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None or annotation["category_id"] not in category_ids:
            key = "image_id" if image is None else "category_id"
            raise ValueError(
                f"{json_file}: annotation {annotation['id']} has {key} {annotation[key]!r}, which no "
                f"entry of {'images' if image is None else 'categories'} has. Add it or drop the annotation."
            )
        if not _is_good_box(annotation["bbox"], image):
            raise ValueError(
                f"{json_file}: annotation {annotation['id']} in {image['file_name']}: "
                f"{_fault_of_box(annotation['bbox'], image)}. Mend or remove it."
            )
    return data


def _check_types(entry, where):
    for key in ("id", "image_id", "category_id"):
        if key in entry and not isinstance(entry[key], int | str):
            raise ValueError(f"{where} has {key} {entry[key]!r}: give an integer.")
    if not isinstance(entry.get("file_name", ""), str):
        raise ValueError(f"{where} has file_name {entry['file_name']!r}: give a text.")
    # `area - area` is 0 for finite numbers alone
    if "area" in entry and not (
        isinstance(entry["area"], int | float) and entry["area"] - entry["area"] == 0
    ):
        raise ValueError(f"{where} has area {entry['area']!r}: give a finite number of pixels.")
    if entry.get("iscrowd", 0) not in (0, 1):
        raise ValueError(f"{where} has iscrowd {entry['iscrowd']!r}: give 0 or 1.")


_ADVICE = {"annotations": " (where there is no mask, area is box width times height)"}


def _check_size(image, json_file):
    for key in ("height", "width"):
        if not isinstance(image[key], int | float) or not image[key] > 0:
            raise ValueError(
                f"{json_file}: image {image['file_name']} has {key} {image[key]!r}: give pixels."
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
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(value, int | float) and math.isfinite(value) for value in box)
    ):
        return f"{shape}, four finite numbers"
    if box[2] < 0 or box[3] < 0:
        return f"{shape}, and width and height must not be negative"
    return f"{shape}, and this one reaches out of its {image['width']}x{image['height']} image (is it XYXY?)"


def missing_images(data, image_root):
    """Names of the images of a COCO file that are not in a folder.

    Args:
        data (dict): a COCO file's content.
        image_root (str or Path): the folder.

    Returns:
        list[str]: file names, in the order of the file.
    """
    image_root = Path(image_root)
    # One listing instead of a look-up per image: COCO has 118,287, often on a network disk.
    present = {path.name for path in image_root.iterdir()} if image_root.is_dir() else set()
    names = (image["file_name"] for image in data["images"])
    return [name for name in names if name not in present and not (image_root / name).is_file()]


def check_images_exist(data, json_file, image_root, hint=""):
    """Stop when an image of a COCO file is missing.

    Args:
        data (dict): the file's content.
        json_file (str or Path): its name, for the message.
        image_root (str or Path): where the images should be.
        hint (str): what to do; ends the message.

    Raises:
        FileNotFoundError: the folder or an image does not exist; names the first few.
    """
    image_root = Path(image_root)
    if not image_root.is_dir():
        raise FileNotFoundError(f"image folder {image_root.absolute()} of {json_file} does not exist. {hint}")
    missing = missing_images(data, image_root)
    if missing:
        named = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} of the {len(data['images'])} images of {json_file} are not in "
            f"{image_root.absolute()}: {named}. {hint}"
        )
