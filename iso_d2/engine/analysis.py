"""The isometry of a model that is built, loaded and fed with images as a config says."""

import itertools
import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

from ..analysis import analyze
from ..files import IMAGE_SUFFIXES, read_image
from ..isometry import delta_init_model_
from .checkpoint import IsoCheckpointer
from .stem_whitening import whiten_stems_

GENERATED = "shapes_test"

logger = logging.getLogger(__name__)


def load_images(paths, number, size=None):
    """The first images of files, folders or data sets, all of one square size.

    Args:
        paths (sequence[str or Path]): image files, folders with images directly in them (sorted by name), or
            registered data sets.
        number (int): of images.
        size (int or None): pixels a side; None: that of the smallest image, but 64 at most.

    Returns:
        list[ndarray]: uint8 RGB, (size, size, 3).

    Raises:
        FileNotFoundError: neither a file, a folder nor a data set, or a data set without its files.
        ValueError: no image, or number or size below 1.
        BrokenImageError: a file cannot be read.
    """
    if number < 1 or (size is not None and size < 1):
        raise ValueError(f"number and size of the images must be at least 1, got {number} and {size}")
    sources = (source for path in paths for source in _sources(path))
    images = [_pixels(source) for source in itertools.islice(sources, number)]
    if not images:
        raise ValueError(f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(map(str, paths))}")
    size = size or min(64, *(n for image in images for n in image.shape[:2]))
    return [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in images
    ]


def load_default_images(cfg, number, size=None):
    """The first test images of a config's data set, or generated ones where its files are not there.

    Returns:
        tuple[list[ndarray], str]: as from :func:`load_images`, and the data set they are of.
    """
    for name in cfg.DATASETS.TEST:
        try:
            return load_images([name], number, size), name
        except (OSError, KeyError) as error:
            logger.warning("No images of %s, others instead: %s", name, error)
    return load_images([GENERATED], number, size), GENERATED


def load_model(cfg, batch):
    """A model as its training starts or as a checkpoint has it, in evaluation mode.

    Args:
        cfg (CfgNode): MODEL.WEIGHTS names the checkpoint; "" for the initialisation, ISO.DELTA_INIT included.
        batch (list[dict]): images as the model takes them, for a stem that whitens (MODEL.ISONET.WHITEN) in
            place of the training images.

    Raises:
        FileNotFoundError, ValueError: as in :meth:`IsoCheckpointer.load`.
    """
    torch.manual_seed(max(cfg.SEED, 0))
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        IsoCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        return model
    if cfg.ISO.DELTA_INIT.ENABLED:
        delta_init_model_(model, cfg.ISO.DELTA_INIT.INCLUDE)
    whiten_stems_(model, [batch])
    return model


def analyze_config(cfg, images, grid=0, jacobian_images=1):
    """Build the model of a config and measure its isometry.

    Without MODEL.WEIGHTS each batch normalization takes the statistics of these images, and a stem that is to
    whiten its images whitens them.

    Args:
        cfg (CfgNode): the model, see :func:`load_model`, and INPUT.FORMAT.
        images (sequence[ndarray]): uint8 RGB, (H, W, 3), of one size.
        grid, jacobian_images (int): as of :func:`iso_d2.analysis.analyze`.

    Returns:
        dict: ``weights``, MODEL.WEIGHTS, and what :func:`iso_d2.analysis.analyze` gives.

    Raises:
        FileNotFoundError, ValueError: as in :func:`load_model` and :func:`iso_d2.analysis.analyze`.
    """
    batch = model_input(cfg, images)
    model, weights = load_model(cfg, batch), cfg.MODEL.WEIGHTS
    return {"weights": weights, **analyze(model, batch, not weights, grid, jacobian_images)}


def model_input(cfg, images):
    """list[dict]: images, uint8 RGB (H, W, 3), as the model takes them."""
    return [{"image": _to_tensor(x, cfg.INPUT.FORMAT), "height": len(x), "width": x.shape[1]} for x in images]


def _sources(path):
    """list: dataset dicts or files."""
    if str(path) in DatasetCatalog.list():
        return DatasetCatalog.get(str(path))
    path = Path(path)
    if path.is_dir():
        return sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != ".")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is neither an image file, a folder nor a registered data set")
    return [path]


def _pixels(source):
    """A dataset dict or file -> uint8 RGB, (H, W, 3)."""
    if isinstance(source, Path):
        return read_image(source, "RGB")
    if "image_array" in source:
        return source["image_array"].transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
    return read_image(source["file_name"], "RGB")


def _to_tensor(image, image_format):
    """uint8 RGB (H, W, 3) -> float32 (C, H, W) of INPUT.FORMAT."""
    if image_format == "L":
        image = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    elif image_format == "BGR":
        image = image[:, :, ::-1]
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
