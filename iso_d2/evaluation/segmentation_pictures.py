"""Drawings of segmented slices beside the truth, and of the volume Dice of all patients."""

import cv2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

# An overlay is drawn this many times larger, so that contours hide little of the image.
SCALE = 4
# Blue and orange, told apart by the colour-blind too
TRUE, PREDICTED = (86, 180, 233), (255, 140, 0)
# What a drawn slice shows, from left to right, each at most this wide
PANELS = ["image", "truth", "probability", "truth blue, prediction orange"]
MAX_WIDTH = 512


def draw_overlay(image, truth, prediction):
    """An image with the outlines of two masks: the truth in blue, the prediction in orange, on top.

    Args:
        image (ndarray): uint8 RGB, (H, W, 3).
        truth (ndarray or None): bool, (H, W).
        prediction (ndarray): bool, (H, W).

    Returns:
        ndarray: uint8 RGB, (4 H, 4 W, 3).
    """
    canvas = _enlarge(image)
    for mask, colour, thickness in ((truth, TRUE, 5), (prediction, PREDICTED, 2)):
        if mask is not None:
            # CCOMP, so that holes get an outline too
            contours, _ = cv2.findContours(
                _enlarge(mask.astype(np.uint8)), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(canvas, contours, -1, colour, thickness)
    return canvas


def _enlarge(array):
    return array.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def draw_slice(image, truth, probabilities, prediction, path):
    """Draw the panels `PANELS` side by side into a PNG file.

    Args:
        image, truth, prediction (ndarray): as in :func:`draw_overlay`, with a truth.
        probabilities (ndarray): uint8, (H, W); 255 is the probability 1.
        path (str): the file.
    """
    overlay = draw_overlay(image, truth, prediction)
    panels = [Image.fromarray(x).convert("RGB") for x in (image, 255 * truth.astype(np.uint8), probabilities)]
    size = [round(n * min(1, MAX_WIDTH / overlay.shape[1])) for n in overlay.shape[1::-1]]
    # enlarged pixels stay pixels, outlines become smooth
    panels = [panel.resize(size, Image.Resampling.NEAREST) for panel in panels]
    panels.append(Image.fromarray(overlay).resize(size, Image.Resampling.LANCZOS))
    Image.fromarray(np.concatenate(panels, axis=1)).save(path)


def draw_volume_dice(dice, path):
    """Draw the volume Dice of each patient as a point, best on the left, beside a box of their quartiles.

    Args:
        dice (dict[str, float]): patient -> Dice in percent; not empty.
        path (str): the file, a PNG.
    """
    ranked = sorted(dice, key=dice.get, reverse=True)
    values = [dice[patient] for patient in ranked]
    figure = Figure(figsize=(8, 5), layout="constrained")
    points, box = figure.subplots(1, 2, sharey=True, width_ratios=[5, 1])
    points.plot(range(len(values)), values, "o")
    points.set(ylim=(-2, 102), ylabel="volume Dice (%)", xlabel=f"{len(values)} patients, best first")
    # more names are not readable side by side
    if len(ranked) <= 30:
        points.set_xticks(range(len(ranked)), ranked, rotation=90, fontsize="x-small")
    points.grid(axis="y")
    box.boxplot(values, widths=0.6, whis=(0, 100))
    box.set_xticks([1], ["min, quartiles, max"], fontsize="x-small")
    box.grid(axis="y")
    figure.savefig(path, dpi=100)
