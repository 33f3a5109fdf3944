"""Drawings of segmented slices beside the truth, and of the volume Dice of all patients."""

import cv2
import numpy as np
from matplotlib.figure import Figure

# An overlay is drawn this many times larger, so that contours hide little of the image.
SCALE = 4
GREEN, RED = (0, 255, 0), (255, 0, 0)


def draw_overlay(image, truth, prediction):
    """An image with the outlines of two masks: the truth in green, the prediction in red, thinner and on top.

    Args:
        image (ndarray): uint8 RGB, (H, W, 3).
        truth (ndarray or None): bool, (H, W).
        prediction (ndarray): bool, (H, W).

    Returns:
        ndarray: uint8 RGB, (4 H, 4 W, 3).
    """
    canvas = _enlarge(image)
    for mask, colour, thickness in ((truth, GREEN, 5), (prediction, RED, 2)):
        if mask is not None:
            # CCOMP, so that holes get an outline too
            contours, _ = cv2.findContours(
                _enlarge(mask.astype(np.uint8)), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(canvas, contours, -1, colour, thickness)
    return canvas


def _enlarge(array):
    return array.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def draw_slice(image, truth, probabilities, prediction, caption, path):
    """Draw image, truth, predicted probability and overlay side by side into a PNG file.

    Args:
        image, truth, prediction (ndarray): as in :func:`draw_overlay`, with a truth.
        probabilities (ndarray): uint8, (H, W); 255 is the probability 1.
        caption (str): stands above.
        path (str): the file.
    """
    panels = {"image": image, "truth": truth, "probability": probabilities}
    panels["truth green, prediction red"] = draw_overlay(image, truth, prediction)
    height, width = truth.shape
    figure = Figure(figsize=(16, 4 * height / width + 0.7), layout="constrained")
    figure.suptitle(caption)
    for axes, (title, panel) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(panel, cmap="gray", vmin=0, vmax=1 if panel is truth else 255)
        axes.set_title(title, fontsize="medium")
        axes.set_axis_off()
    figure.savefig(path, dpi=130)


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
