"""Predicted masks as files, and how well they agree with true ones that lie beside the images."""

from collections import defaultdict

import numpy as np
from PIL import Image

from ..evaluation import draw_overlay
from ..evaluation.segmentation import read_mask
from ..evaluation.segmentation_metrics import Overlap
from ..files import read_image


def is_mask(file):
    """Whether a file (Path) is by its name the mask of an image beside it: ``x_mask.tif`` of ``x.tif``."""
    stem = file.stem.removesuffix("_mask")
    return stem != file.stem and file.with_stem(stem).is_file()


class PredictedMasks:
    """Writes the mask and a drawing of each image, and compares with true masks.

    ``x_mask.png`` holds 0 and 255 for a model of one class, else the number of the class of each pixel;
    ``x_overlay.png`` shows the image with the outline of the predicted foreground in red and, where
    ``x_mask`` of the image's own format lies beside it, of the true one in green.

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
        if len(sem_seg) == 1:
            labels = (sem_seg[0] >= self.threshold).cpu().numpy().astype(np.uint8) * 255
        else:
            labels = sem_seg.argmax(dim=0).cpu().numpy().astype(np.uint8)
        # Slices of several patients may have the same names.
        name = f"{self.number:04d}_{file.stem}"
        self.number += 1
        Image.fromarray(labels).save(self.folder / f"{name}_mask.png")
        true_file = file.with_stem(f"{file.stem}_mask")
        truth = read_mask(str(true_file)) if true_file.is_file() else None
        if truth is not None and truth.shape != labels.shape:
            raise ValueError(f"{true_file} is of size {truth.shape}, its image of {labels.shape}")
        overlay = draw_overlay(read_image(file, "RGB"), truth, labels > 0)
        Image.fromarray(overlay).save(self.folder / f"{name}_overlay.png")
        self._overlaps[file.parent].append(None if truth is None else Overlap.of(labels > 0, truth))

    def skip(self, file):
        """Note that an image (Path) has no prediction, or its true mask is of no use."""
        self._overlaps[file.parent].append(None)

    def volume_dice(self):
        """Dice of all slices of a folder together, for each whose images all have a true mask.

        Returns:
            dict[Path, float]: in percent.
        """
        return {
            folder: 100 * Overlap.total(overlaps).dice
            for folder, overlaps in self._overlaps.items()
            if None not in overlaps
        }
