"""Square chips of the person/bicycle/car subset, each around one object: real images that a CPU can learn.

    coco_pbc_chips_train        one around every object of coco_pbc_train whose longer side is 48 pixels or
                                more and less than the shorter side of its image
    coco_pbc_chips_test         the same of coco_pbc_test
    coco_pbc_chips_test_large   the same of coco_pbc_test_large, the largest such object of an image alone

In whole images most objects are small, and a detector that starts from nothing needs far more images to
find any. In a chip one object is from half to three quarters of the side, wherever the chip's edges fall, or
more where the image is too small for that. Chips are cut on first use, into the cache.
"""

import functools
import json
import random

import cv2
from detectron2.data import DatasetCatalog

from ...files import read_image
from ..catalog import cached, register, short_hash
from .annotations import load_coco
from .subset import CLASSES

SIDE = 160  # pixels of a chip
SMALLEST = 48  # pixels that the longer side of its object has in the image
SIDES = (4 / 3, 2)  # of a chip, in longer sides of its object
# What is seen to a smaller part, or is smaller in the chip, is a crowd: no object, nor an error if found
LEAST_SEEN, LEAST_SIDE = 0.5, 1 / 8


def chips_of(record, largest=False):
    """list[dict]: the chips of an image, chosen at random, always in the same way.

    Args:
        record (dict): a dataset dict with ``image_id``, ``height``, ``width`` and ``annotations``.
        largest (bool): only the one around the largest object.

    Returns:
        list[dict]: ``box`` (left, top, side in pixels of the image, integers) and ``annotations``, in COCO's
        format, with boxes (x, y, width, height) in pixels of the chip.
    """
    objects = [one for one in record["annotations"] if not one.get("iscrowd")]
    shorter = min(record["height"], record["width"])
    chosen = [one for one in objects if SMALLEST <= max(one["bbox"][2:]) < shorter]
    if largest:
        chosen = sorted(chosen, key=lambda one: -max(one["bbox"][2:]))[:1]
    draw = random.Random(str(record["image_id"])).uniform
    chips = []
    for one in chosen:
        x, y, width, height = one["bbox"]
        side = min(round(draw(*SIDES) * max(width, height)), shorter)
        left, top = (
            min(max(0, round(draw(max(0, start + length - side), min(start, whole - side)))), whole - side)
            for start, length, whole in ((x, width, record["width"]), (y, height, record["height"]))
        )
        seen = (_seen(other, left, top, side) for other in record["annotations"])
        chips.append({"box": (left, top, side), "annotations": [one for one in seen if one]})
    return chips


def _seen(annotation, left, top, side):
    x, y, width, height = annotation["bbox"]
    ends = [min(side, x + width - left), min(side, y + height - top)]
    starts = [max(0, x - left), max(0, y - top)]
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    if min(sizes) <= 0:
        return None
    seen = sizes[0] * sizes[1] / (width * height)
    crowd = annotation.get("iscrowd") or seen < LEAST_SEEN or max(sizes) < LEAST_SIDE * side
    box = [value * SIDE / side for value in (*starts, *sizes)]
    # classes of dataset dicts count from 0
    return {
        "bbox": [round(value, 2) for value in box],
        "area": round(box[2] * box[3], 2),
        "category_id": annotation["category_id"] + 1,
        "iscrowd": int(bool(crowd)),
    }


def load_chips(split):
    """list[dict]: the dataset dicts of ``coco_pbc_chips_<split>``; chips are cut if they are not there."""
    chips = [
        (record, chip)
        for record in DatasetCatalog.get(f"coco_pbc_{split}")
        for chip in chips_of(record, largest=split == "test_large")
    ]
    content = [[record["file_name"].rsplit("/", 1)[-1], chip] for record, chip in chips]
    folder = cached(
        f"coco_pbc_chips_{split}-{short_hash([SIDE, content])}", functools.partial(_cut, chips=chips)
    )
    return load_coco(f"coco_pbc_chips_{split}", folder / "instances.json", folder / "images")


def _cut(folder, chips):
    (folder / "images").mkdir()
    images, annotations = [], []
    for number, (record, chip) in enumerate(chips, 1):
        left, top, side = chip["box"]
        image = read_image(record["file_name"], "BGR")
        if image.shape[:2] != (record["height"], record["width"]):
            raise ValueError(
                f"{record['file_name']} has {image.shape[1]}x{image.shape[0]} pixels, and "
                f"{record['width']}x{record['height']} by the annotations: take the original image"
            )
        pixels = image[top : top + side, left : left + side]
        pixels = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        name = f"{number:05d}.jpg"
        if not cv2.imwrite(str(folder / "images" / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f"cannot write {folder / 'images' / name}")
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        annotations += [{"image_id": number, **one} for one in chip["annotations"]]
    for number, one in enumerate(annotations, 1):
        one["id"] = number
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


for _split in ("train", "test", "test_large"):
    register(f"coco_pbc_chips_{_split}", functools.partial(load_chips, _split), thing_classes=CLASSES)
