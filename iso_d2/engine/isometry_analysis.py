"""Everything that is known about the isometry of a model: built, loaded and measured as a config says."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

from ..evaluation.isometry_jacobian import measure_jacobian
from ..evaluation.isometry_layers import (
    find_network,
    measure_convolutions,
    measure_scales,
    measure_thresholds,
)
from ..evaluation.isometry_network import (
    calibrate_batch_norm,
    measure_depth,
    network_input,
)
from ..evaluation.isometry_signal import measure_signal
from ..files import IMAGE_SUFFIXES, read_image
from .checkpoint import IsoCheckpointer
from .hooks import DeltaInitHook

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
    images = []
    for path in paths:
        if len(images) < number:
            images += [_pixels(source) for source in _sources(path)[: number - len(images)]]
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


def load_model(cfg):
    """A model as its training starts or as a checkpoint has it, in evaluation mode.

    Args:
        cfg (CfgNode): MODEL.WEIGHTS names the checkpoint; "" for the initialisation, ISO.DELTA_INIT included.

    Returns:
        nn.Module

    Raises:
        FileNotFoundError, ValueError: as in :meth:`IsoCheckpointer.load`.
    """
    torch.manual_seed(max(cfg.SEED, 0))
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        IsoCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    elif cfg.ISO.DELTA_INIT.ENABLED:
        hook = DeltaInitHook(cfg.ISO.DELTA_INIT.INCLUDE)
        hook.trainer = SimpleNamespace(model=model, start_iter=0)
        hook.before_train()
    return model


def analyze(cfg, images, grid=0, jacobian_images=1):
    """Measure the isometry of the network between image and heads, layer by layer and as a whole.

    Layers are measured in the model's own dtype, the whole in float64. Without MODEL.WEIGHTS each batch
    normalization takes the statistics of these images; they count as constants in gradient and Jacobian.

    Args:
        cfg (CfgNode): the model, see :func:`load_model`, and INPUT.FORMAT.
        images (sequence[ndarray]): uint8 RGB, (H, W, 3), of one size.
        grid (int): pixels an axis of the circular grid of the singular values, see
            :func:`~iso_d2.evaluation.isometry_layers.measure_convolution`.
        jacobian_images (int): the Jacobian is taken at so many of the images, the first ones.

    Returns:
        dict: ``network``, its dotted name in the model; ``weights``, MODEL.WEIGHTS; ``input``, the shape of
        the network's input; ``calibrated_norms``, how many normalizations took the images' statistics;
        ``layers``, ``thresholds`` and ``scales`` as from :mod:`~iso_d2.evaluation.isometry_layers`;
        ``signal`` as from :func:`~iso_d2.evaluation.isometry_signal.measure_signal`;
        ``depth`` as from :func:`~iso_d2.evaluation.isometry_network.measure_depth`; ``jacobian``, for each of
        its images as from :func:`~iso_d2.evaluation.isometry_jacobian.measure_jacobian`.

    Raises:
        FileNotFoundError, ValueError: as in :func:`load_model`; images smaller than the network's stride;
            jacobian_images below 0.
    """
    if jacobian_images < 0:
        raise ValueError(f"the Jacobian is taken at 0 or more images, got {jacobian_images}")
    model = load_model(cfg)
    name, network = find_network(model)
    inputs = network_input(model, network, [_to_tensor(image, cfg.INPUT.FORMAT) for image in images])
    calibrated = 0 if cfg.MODEL.WEIGHTS else calibrate_batch_norm(network, inputs)
    result = {
        "network": name,
        "weights": cfg.MODEL.WEIGHTS,
        "input": list(inputs.shape),
        "calibrated_norms": calibrated,
        "layers": measure_convolutions(network, grid),
        "thresholds": measure_thresholds(network),
        "scales": measure_scales(network),
        "signal": measure_signal(network, inputs),
    }
    network.double()
    inputs = inputs.double()
    result["depth"] = measure_depth(network, inputs)
    result["jacobian"] = [measure_jacobian(network, image[None]) for image in inputs[:jacobian_images]]
    return result


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
