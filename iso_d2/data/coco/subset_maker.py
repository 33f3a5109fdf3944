"""Makes a subset of COCO with a few classes, such as the report's person/bicycle/car images (section 4.2)."""

import hashlib
import json
import re
from pathlib import Path

from ...files import write_atomically
from ..download import obtain_images
from .annotations import read_coco_json

# How many failed images an error message lists
_LISTED = 20


def select_subset(data, classes, num_train, num_test, seed, num_large=0):
    """Choose training and test images that hold the given classes, and keep those classes only.

    An image qualifies by one object of the classes that is no crowd. The qualifying images are ordered by a
    hash of seed and image id; the first ``num_test`` are the test images, the following ones the training
    images, those after them a large test set. So the lists depend neither on the order of the file nor on the
    Python version, and a larger ``num_train`` or ``num_large`` only adds to its own list.

    Args:
        data (dict): a COCO file's content.
        classes (list[str]): names of categories.
        num_train, num_test (int): numbers of images.
        seed (int): another seed gives other images.
        num_large (int): number of images of the large test set; 0: none.

    Returns:
        tuple[dict, ...]: COCO files' contents (training, test and, if asked for, large test set), disjoint:
        images and annotations in order of their ids, all annotations of the classes (crowds and masks too),
        category ids unchanged.

    Raises:
        ValueError: an unknown or repeated class, a size below 1 (``num_large``: below 0), or fewer qualifying
            images than asked for.
    """
    known = [category["name"] for category in data["categories"]]
    unknown = [name for name in classes if name not in known]
    if unknown or not classes or len(set(classes)) < len(classes):
        fault = f"unknown {', '.join(unknown)}" if unknown else f"got {list(classes)}"
        raise ValueError(f"classes must be different ones of {', '.join(known)}: {fault}")
    if num_train < 1 or num_test < 1:
        raise ValueError(f"num_train and num_test must be at least 1, got {num_train} and {num_test}")
    if num_large < 0:
        raise ValueError(f"num_large must be at least 0, got {num_large}")

    categories = [category for category in data["categories"] if category["name"] in classes]
    category_ids = {category["id"] for category in categories}
    annotations = [a for a in data["annotations"] if a["category_id"] in category_ids]
    qualifying = {a["image_id"] for a in annotations if not a.get("iscrowd")}
    if len(qualifying) < num_train + num_test + num_large:
        further = f" and {num_large} further test images" if num_large else " images"
        raise ValueError(
            f"{num_train} training and {num_test} test{further} were asked for, but the file has only "
            f"{len(qualifying)} images with {', '.join(classes)}. Ask for fewer, or take a larger file."
        )
    ranked = sorted(qualifying, key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())

    def subset(image_ids):
        image_ids = set(image_ids)
        images = [image for image in data["images"] if image["id"] in image_ids]
        chosen = [a for a in annotations if a["image_id"] in image_ids]
        lists = {"images": images, "annotations": chosen, "categories": categories}
        return {
            "info": data.get("info", {}),
            "licenses": data.get("licenses", []),
            **{name: sorted(entries, key=lambda entry: entry["id"]) for name, entries in lists.items()},
        }

    end = num_test + num_train
    large = [subset(ranked[end : end + num_large])] if num_large else []
    return subset(ranked[num_test:end]), subset(ranked[:num_test]), *large


def make_coco_subset(
    annotation_file, root, classes, num_train, num_test, seed=0, image_folder=None, source=None, num_large=0
):
    """Make a subset of COCO under ``root/coco``: annotation files and the images that they name.

    The annotation files are written last, so that they never name images that are not there. Calling it again
    after a failure continues.

    Args:
        annotation_file (str or Path): a COCO instances file, such as ``instances_val2017.json``.
        root (str or Path): the data set root.
        classes, num_train, num_test, seed, num_large: see ``select_subset``.
        image_folder (str, optional): folder of the images in ``root/coco``; by default from the name of the
            annotation file (``val2017``).
        source (str or Path, optional): folder that has the images; then nothing is downloaded.

    Returns:
        tuple[Path, ...]: the training file, the test file, the image folder and, with ``num_large``, the file
        of the large test set, ``..._testlarge.json``.

    Raises:
        FileNotFoundError: the annotation file or ``source`` does not exist.
        ValueError: the annotation file is faulty or the arguments do not fit it.
        OSError: some images could not be had; the message lists them.
    """
    annotation_file, coco = Path(annotation_file), Path(root) / "coco"
    known = re.fullmatch(r"instances_([A-Za-z]+[0-9]+)", annotation_file.stem)
    if not image_folder and not known:
        raise ValueError(
            f"cannot tell the image folder from the name {annotation_file.name!r}, as it can from "
            "instances_val2017.json: give image_folder (--image-folder val2017)"
        )
    images = coco / (image_folder or known[1])
    if source is not None and not Path(source).is_dir():
        raise FileNotFoundError(f"image folder {Path(source).absolute()} does not exist")
    data = read_coco_json(
        annotation_file, "Unpack COCO's annotations_trainval2017.zip and name its instances_val2017.json."
    )
    parts = select_subset(data, classes, num_train, num_test, seed, num_large)
    needed = [image for part in parts for image in part["images"]]
    failures = obtain_images(needed, images, source)
    if failures:
        lines = [f"{len(failures)} of {len(needed)} images could not be had:"]
        lines += [f"  {name}: {reason}" for name, reason in list(failures.items())[:_LISTED]]
        if len(failures) > _LISTED:
            lines.append(f"  and {len(failures) - _LISTED} more")
        raise OSError("\n".join(lines))

    stem = "_".join(["instances", *(name.replace(" ", "-") for name in classes)])
    names = (f"train{num_train}", f"test{num_test}", "testlarge")[: len(parts)]
    train_file, test_file, *large = (coco / "annotations" / f"{stem}_{name}.json" for name in names)
    for file, part in zip((train_file, test_file, *large), parts, strict=True):
        write_atomically(file, json.dumps(part))
    return train_file, test_file, images, *large
