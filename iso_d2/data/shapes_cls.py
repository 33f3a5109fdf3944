"""shapes_cls_train and shapes_cls_test: 32x32 images of ten drawn shapes, made on first use.

They stand in for CIFAR in tests and at first contact. Colours, place, size, slant and clutter are drawn at
random for every image, whatever its class, so that only the outline tells the classes apart. The shape is
light and the ground dark, as without it the mean of an image would tell nothing at all, and a network that
starts as the identity, with average pooling at its end, has nothing but that mean to start learning from.
"""

import functools
import logging

import cv2
import numpy as np

from ..files import make_once
from .labelled_images import LabelledImages, register_labelled_images
from .paths import cache_root

CLASSES = ("disc", "ring", "square", "diamond", "triangle", "star", "plus", "cross", "bars", "columns")
# Part of the folder's name: raise it whenever the drawings change, or old caches stay in use.
VERSION = 2
# Images of each split, and the number its seeds start with
SPLITS = {"train": (2000, 0), "test": (500, 1)}
SIDE = 32
# Drawn this many times larger and averaged down, for smooth edges
SCALE = 4
# Least difference, in grey levels, between shape and ground
CONTRAST = 60

logger = logging.getLogger(__name__)


def draw_shapes(num_images, seed):
    """Draw a set; the classes take turns, and image i depends on (seed, i) alone.

    Args:
        num_images (int): how many.
        seed (int): of the drawings.

    Returns:
        LabelledImages: (num_images, 3, 32, 32), labels 0 to 9.
    """
    labels = np.arange(num_images, dtype=np.int64) % len(CLASSES)
    images = np.empty((num_images, 3, SIDE, SIDE), np.uint8)
    for index, label in enumerate(labels):
        rng = np.random.default_rng([seed, index])
        images[index] = _draw(rng, CLASSES[label]).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    return LabelledImages(images, labels)


def _draw(rng, name):
    """One image: uint8, (SIDE, SIDE, 3)."""
    size = SIDE * SCALE
    ground, clutter, colour = rng.integers(10, 90, 3), rng.integers(10, 236, 3), rng.integers(80, 246, 3)
    while colour.mean() - ground.mean() < CONTRAST:
        colour = rng.integers(80, 246, 3)
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = ground
    for _ in range(rng.integers(0, 4)):  # specks, smaller than any shape
        centre = tuple(int(value) for value in rng.integers(0, size, 2))
        cv2.circle(canvas, centre, int(rng.integers(3, 9)), clutter.tolist(), cv2.FILLED)

    radius = rng.uniform(0.24, 0.36) * size
    angle = np.deg2rad(rng.uniform(-12, 12))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(radius, size - radius, 2)
    for outline, sign in _outlines(name):
        points = np.rint(np.array(outline) * radius @ turn + centre).astype(np.int32)
        cv2.fillPoly(canvas, [points], (colour if sign else ground).tolist())

    image = cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    shade = rng.normal(0.0, 12.0, (3, 3, 3))
    image += cv2.resize(shade, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0.0, rng.uniform(2.0, 10.0), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def _outlines(name):
    """Polygons that make up a shape within the unit circle, y downwards, and whether each fills or clears."""
    if name == "disc":
        return [(_polygon(24), True)]
    if name == "ring":
        return [(_polygon(24), True), (_polygon(24, 0.55), False)]
    if name == "square":
        return [(_box(-0.8, -0.8, 0.8, 0.8), True)]
    if name == "diamond":
        return [(_polygon(4), True)]
    if name == "triangle":
        return [(_polygon(3), True)]
    if name == "star":
        outer, inner = _polygon(5), _polygon(5, 0.4, np.pi / 5)
        return [([point for pair in zip(outer, inner, strict=True) for point in pair], True)]
    bars = [_box(-0.9, y - 0.17, 0.9, y + 0.17) for y in (-0.68, 0.0, 0.68)]
    if name == "bars":
        return [(bar, True) for bar in bars]
    if name == "columns":
        return [([(y, x) for x, y in bar], True) for bar in bars]
    arms = [_box(-1.0, -0.26, 1.0, 0.26), _box(-0.26, -1.0, 0.26, 1.0)]
    if name == "cross":
        half = np.sqrt(0.5)
        arms = [[(half * (x - y), half * (x + y)) for x, y in arm] for arm in arms]
    return [(arm, True) for arm in arms]


def _polygon(corners, radius=1.0, turn=0.0):
    """A regular polygon, its first corner on top."""
    angles = 2 * np.pi * np.arange(corners) / corners + turn
    return [(radius * np.sin(angle), -radius * np.cos(angle)) for angle in angles]


def _box(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _load(split):
    num_images, seed = SPLITS[split]
    folder = cache_root() / f"shapes_cls_{split}-v{VERSION}"
    if not folder.is_dir():
        logger.info("drawing the %d images of shapes_cls_%s into %s", num_images, split, folder)

    def fill(unfinished):
        drawn = draw_shapes(num_images, seed)
        np.savez(unfinished / "images.npz", images=drawn.images, labels=drawn.labels)

    make_once(folder, fill)
    try:
        with np.load(folder / "images.npz", allow_pickle=False) as arrays:
            return LabelledImages(arrays["images"], arrays["labels"])
    except Exception as error:  # damaged archives raise many kinds
        raise ValueError(f"cannot read {folder} ({error}). Remove it: it is then made again.") from error


for _split in SPLITS:
    register_labelled_images(f"shapes_cls_{_split}", functools.partial(_load, _split), CLASSES)
