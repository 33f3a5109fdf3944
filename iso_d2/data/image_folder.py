"""Image files in one folder a class: ``root/<class>/*.jpg``; imagenet_train and imagenet_val are such."""

import functools
import logging
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..files import IMAGE_SUFFIXES
from .catalog import dataset_root, register

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


def load_image_folder(name, root, hint=""):
    """List a folder of labelled images.

    Args:
        name (str): the metadata of that name get ``thing_classes``, or say which classes there are.
        root (str or Path): folder with one folder of images for each class. Hidden ones do not count, nor do
            files that are no images by their suffix.
        hint (str): what to do when it is missing; by default, to check the path.

    Returns:
        list[dict]: ``file_name``, ``image_id`` and ``label`` (int), sorted by class and name.

    Raises:
        FileNotFoundError: ``root`` does not exist, or has no images.
        ValueError: it has a folder that is none of the classes.
    """
    root = Path(root)
    if not root.is_dir():
        hint = hint or f"The data set {name!r} was registered with this path: check it."
        raise FileNotFoundError(f"image folder {root.absolute()} does not exist. {hint}")
    metadata = MetadataCatalog.get(name)
    folders = [path.name for path in _visible(root) if path.is_dir()]
    classes = metadata.get("thing_classes", folders)
    unknown = [folder for folder in folders if folder not in classes]
    if unknown:
        raise ValueError(
            f"{root} has the folder {unknown[0]!r}, which is none of the {len(classes)} classes of {name!r} "
            f"({', '.join(classes[:5])}, ...). Move it away, or register the set with its class names."
        )
    found = []
    for label, folder in enumerate(classes):
        files = _visible(root / folder) if folder in folders else []
        files = [str(path) for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            logger.warning("%s: no images of class %r in %s", name, folder, root)
        found += [(file, label) for file in files]
    if not found:
        raise FileNotFoundError(
            f"{root.absolute()} of the data set {name!r} has no images. It must hold one folder a class, "
            f"with files ending in {', '.join(IMAGE_SUFFIXES)}."
        )
    metadata.thing_classes = list(classes)
    return [{"file_name": file, "image_id": i, "label": label} for i, (file, label) in enumerate(found)]


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _load_imagenet(split):
    hint = (
        f"imagenet_{split} must lie there, one folder a class. Set DETECTRON2_DATASETS to the folder that "
        "holds imagenet/, or name folders elsewhere in DATASETS.IMAGE_FOLDERS."
    )
    return load_image_folder(f"imagenet_{split}", dataset_root() / "imagenet" / split, hint)


for _split in ("train", "val"):
    register(f"imagenet_{_split}", functools.partial(_load_imagenet, _split), evaluator_type="classification")
