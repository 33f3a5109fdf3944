"""Mask files: true ones, and those that a model predicts, with the agreement of both."""

import re
from collections import defaultdict

import numpy as np
from PIL import Image

from ..files import read_image
from .segmentation_metrics import Overlap
from .segmentation_pictures import draw_overlay


def read_mask(path):
    """Read a mask file.

    Args:
        path (str or Path): an image of 0 (background) and 255.

    Returns:
        ndarray: bool, (H, W).

    Raises:
        ValueError: it cannot be read, or holds another value.
    """
    try:
        with Image.open(path) as file:
            mask = np.asarray(file.convert("L"))
    except Exception as error:  # by format: OSError, SyntaxError, ValueError, struct.error ...
        raise ValueError(f"cannot read the mask {path} ({error}). Replace it.") from error
    other = mask[(mask != 0) & (mask != 255)]
    if other.size:
        raise ValueError(
            f"Mask {path} holds the value {other[0]}; only 0 (background) and 255 (tumour) are accepted. "
            "Write it again with these."
        )
    return mask == 255


def is_mask(file):
    """Whether a file (Path) is by its name the mask of an image beside it: ``x_mask.tif`` of ``x.tif``.

    The mask of a volume ``x.nii`` may be ``x_mask.nii.gz``.
    """
    name = re.sub(r"_mask((\.nii)?\.[^.]+)$", r"\1", file.name)
    names = {name, name.removesuffix(".gz")} if name != file.name else ()
    return any(file.with_name(name).is_file() for name in names)


def class_labels(sem_seg, threshold):
    """The class of each pixel.

    Args:
        sem_seg (Tensor): (K, H, W): probabilities of one class, else scores of each.
        threshold (float): probability from which a pixel is of the one class.

    Returns:
        ndarray: uint8, (H, W).
    """
    labels = sem_seg[0] >= threshold if len(sem_seg) == 1 else sem_seg.argmax(dim=0)
    return labels.cpu().numpy().astype(np.uint8)


class PredictedMasks:
    """Writes the mask and a drawing of each image, and compares with true masks.

    ``x_mask.png`` holds 0 and 255 for a model of one class, else the class number of each pixel.
    ``x_overlay.png`` shows the image with the outline of the predicted foreground in orange. If ``x_mask`` of
    the image's own format lies beside the image, the outline of the true foreground is blue.

    Args:
        folder (Path): for the files.
        threshold (float): probability from which a pixel of a model of one class is foreground.
    """

    def __init__(self, folder, threshold):
        self.folder = folder
        self.threshold = threshold
        self.number = 0
        self._overlaps = defaultdict(list)  # folder of the images -> an Overlap or None of each

    def add(self, file, sem_seg):
        """Write the prediction for one image.

        Args:
            file (Path): the image.
            sem_seg (Tensor): (K, H, W) at the image's size: probabilities of one class, else scores of each.

        Raises:
            ValueError: the true mask holds other values than 0 and 255, or is of another size.
        """
        labels = class_labels(sem_seg, self.threshold)
        if len(sem_seg) == 1:
            labels *= 255
        # numbered, since slices of several patients may have the same names
        name = f"{self.number:04d}_{file.stem}"
        self.number += 1
        Image.fromarray(labels).save(self.folder / f"{name}_mask.png")
        true_file = file.with_stem(f"{file.stem}_mask")
        truth = read_mask(true_file) if true_file.is_file() else None
        if truth is not None and truth.shape != labels.shape:
            raise ValueError(f"{true_file} is of size {truth.shape}, its image of {labels.shape}")
        overlay = draw_overlay(read_image(file, "RGB"), truth, labels > 0)
        Image.fromarray(overlay).save(self.folder / f"{name}_overlay.png")
        self._overlaps[file.parent].append(None if truth is None else Overlap.of(labels > 0, truth))

    def skip(self, file):
        """Note that an image (Path) has no prediction, or its true mask is of no use."""
        self._overlaps[file.parent].append(None)

    def volume_dice(self):
        """dict[Path, float]: folder -> Dice in percent of its slices together, if all have a true mask."""
        return {
            folder: 100 * Overlap.total(overlaps).dice
            for folder, overlaps in self._overlaps.items()
            if None not in overlaps
        }
