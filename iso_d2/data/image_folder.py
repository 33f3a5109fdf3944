"""Image files in one folder a class: ``root/<class>/*.jpg``; imagenet_train and imagenet_val are such."""

import functools
import logging
import os

from detectron2.data import MetadataCatalog

from .paths import dataset_root
from .registration import register

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

logger = logging.getLogger(__name__)


def register_image_folder(name, root, classes=None):
    """Register a folder of labelled images for classification, in place of an earlier set of that name.

    Nothing is read until the set is used.

    Args:
        name (str): what DATASETS.TRAIN or DATASETS.TEST will say.
        root (str or Path): folder with one folder of images for each class.
        classes (sequence[str], optional): the folders in the order of the labels; default: all of ``root``,
            by name. Give it where a test set may lack some classes of the training set.
    """
    metadata = {} if classes is None else {"thing_classes": list(classes)}
    load = functools.partial(load_image_folder, name, root)
    register(name, load, evaluator_type="classification", **metadata)


def load_image_folder(name, root):
    """List a folder of labelled images.

    Args:
        name (str): the metadata of that name get ``thing_classes``, or say which classes there are.
        root (str or Path): folder with one folder of images for each class. Hidden ones do not count, nor do
            files that are no images by their suffix.

    Returns:
        list[dict]: ``file_name``, ``image_id`` and ``label`` (int), sorted by class and name.

    Raises:
        FileNotFoundError: ``root`` does not exist, or has no images.
        ValueError: it has a folder that is none of the classes.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"image folder {os.path.abspath(root)} does not exist. The data set {name!r} was registered with "
            "this path: check it."
        )
    metadata = MetadataCatalog.get(name)
    folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    classes = metadata.get("thing_classes", folders)
    unknown = [folder for folder in folders if folder not in classes]
    if unknown:
        raise ValueError(
            f"{root} has the folder {unknown[0]!r}, which is none of the {len(classes)} classes of {name!r} "
            f"({', '.join(classes[:5])}, ...). Move it away, or register the set with its class names."
        )
    dataset_dicts = []
    for label, folder in enumerate(classes):
        names = _images(os.path.join(root, folder)) if folder in folders else []
        if not names:
            logger.warning("%s: no images of class %r in %s", name, folder, root)
        for file_name in names:
            path = os.path.join(root, folder, file_name)
            dataset_dicts.append({"file_name": path, "image_id": len(dataset_dicts), "label": label})
    if not dataset_dicts:
        raise FileNotFoundError(
            f"{os.path.abspath(root)} of the data set {name!r} has no images. It must hold one folder a "
            f"class, with files ending in {', '.join(SUFFIXES)}."
        )
    metadata.thing_classes = list(classes)
    return dataset_dicts


def _images(folder):
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
    )


def _load_imagenet(split):
    root = dataset_root() / "imagenet" / split
    if not root.is_dir():
        raise FileNotFoundError(
            f"imagenet_{split} must lie in {root.absolute()}, one folder a class. Set DETECTRON2_DATASETS "
            "to the folder that holds imagenet/, or name folders elsewhere in DATASETS.IMAGE_FOLDERS."
        )
    return load_image_folder(f"imagenet_{split}", root)


for _split in ("train", "val"):
    register(f"imagenet_{_split}", functools.partial(_load_imagenet, _split), evaluator_type="classification")
