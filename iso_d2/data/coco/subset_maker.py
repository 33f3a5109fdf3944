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


def select_subset(data, classes, num_train, num_test, seed):
    """Choose training and test images that hold the given classes, and keep those classes only.

    An image qualifies by one object of the classes that is no crowd. The qualifying images are ordered by a
    hash of seed and image id; the first ``num_test`` are the test images, the following ones the training
    images. So the lists depend neither on the order of the file nor on the Python version, and a larger
    ``num_train`` only adds to them.

    Args:
        data (dict): a COCO file's content.
        classes (list[str]): names of categories.
        num_train, num_test (int): numbers of images.
        seed (int): another seed gives other images.

    Returns:
        tuple[dict, dict]: COCO files' contents (training, test), disjoint: images and annotations in order of
        their ids, all annotations of the classes (crowds and masks too), category ids unchanged.

    Raises:
        ValueError: an unknown or repeated class, a size below 1, or fewer qualifying images than asked for.
    """
    known = [category["name"] for category in data["categories"]]
    unknown = [name for name in classes if name not in known]
    if unknown or not classes or len(set(classes)) < len(classes):
        fault = f"unknown {', '.join(unknown)}" if unknown else f"got {list(classes)}"
        raise ValueError(f"classes must be different ones of {', '.join(known)}: {fault}")
    if num_train < 1 or num_test < 1:
        raise ValueError(f"num_train and num_test must be at least 1, got {num_train} and {num_test}")

    categories = [category for category in data["categories"] if category["name"] in classes]
    category_ids = {category["id"] for category in categories}
    annotations = [a for a in data["annotations"] if a["category_id"] in category_ids]
    qualifying = {a["image_id"] for a in annotations if not a.get("iscrowd")}
    if len(qualifying) < num_train + num_test:
        raise ValueError(
            f"{num_train} training and {num_test} test images were asked for, but the file has only "
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

    return subset(ranked[num_test : num_test + num_train]), subset(ranked[:num_test])


def make_coco_subset(
    annotation_file, root, classes, num_train, num_test, seed=0, image_folder=None, source=None
):
    """Make a subset of COCO under ``root/coco``: two annotation files and the images that they name.

    The annotation files are written last, so that they never name images that are not there. Calling it again
    after a failure continues.

    Args:
        annotation_file (str or Path): a COCO instances file, such as ``instances_val2017.json``.
        root (str or Path): the data set root.
        classes, num_train, num_test, seed: see ``select_subset``.
        image_folder (str, optional): folder of the images in ``root/coco``; by default from the name of the
            annotation file (``val2017``).
        source (str or Path, optional): folder that has the images; then nothing is downloaded.

    Returns:
        tuple[Path, Path, Path]: the training file, the test file, the image folder.

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
    train, test = select_subset(data, classes, num_train, num_test, seed)
    failures = obtain_images(test["images"] + train["images"], images, source)
    if failures:
        lines = [f"{len(failures)} of {num_train + num_test} images could not be had:"]
        lines += [f"  {name}: {reason}" for name, reason in list(failures.items())[:_LISTED]]
        if len(failures) > _LISTED:
            lines.append(f"  and {len(failures) - _LISTED} more")
        raise OSError("\n".join(lines))

    stem = "_".join(["instances", *(name.replace(" ", "-") for name in classes)])
    train_file = coco / "annotations" / f"{stem}_train{num_train}.json"
    test_file = coco / "annotations" / f"{stem}_test{num_test}.json"
    write_atomically(train_file, json.dumps(train))
    write_atomically(test_file, json.dumps(test))
    return train_file, test_file, images
