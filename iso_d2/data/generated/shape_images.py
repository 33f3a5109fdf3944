"""shapes_cls_train and shapes_cls_test: 32x32 images of ten drawn shapes, made on first use.

They stand in for CIFAR in tests and at first contact. Colours, place, size, slant and clutter are drawn at
random for every image, whatever its class, so that only the outline tells the classes apart. The shape is
light and the ground dark. Otherwise the mean of an image would tell nothing at all, and a network that starts
as the identity, with average pooling at its end, has nothing but that mean to start learning from.
"""

import functools

import cv2
import numpy as np

from ..arrays import LabelledImages, register_labelled_images
from ..catalog import cached

# Part of the folder's name: raise it whenever the drawings change, or old caches stay in use.
VERSION = 2
# Images of each split, and the number its seeds start with
SPLITS = {"train": (2000, 0), "test": (500, 1)}
SIDE = 32
# Drawn this many times larger and averaged down, for smooth edges
SCALE = 4
# Least difference, in grey levels, between shape and ground
CONTRAST = 60


def _polygon(corners, radius=1.0, turn=0.0):
    """A regular polygon, its first corner on top."""
    angles = 2 * np.pi * np.arange(corners) / corners + turn
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1)


def _box(x, y):
    """A rectangle about the origin."""
    return np.array([(-x, -y), (x, -y), (x, y), (-x, y)])


_BARS = [_box(0.9, 0.17) + (0, y) for y in (-0.68, 0.0, 0.68)]
_PLUS = [_box(1.0, 0.26), _box(0.26, 1.0)]
# Polygons that make up each shape within the unit circle, y downwards; of a ring the second one clears.
OUTLINES = {
    "disc": [_polygon(24)],
    "ring": [_polygon(24), _polygon(24, 0.55)],
    "square": [_box(0.8, 0.8)],
    "diamond": [_polygon(4)],
    "triangle": [_polygon(3)],
    "star": [np.stack([_polygon(5), _polygon(5, 0.4, np.pi / 5)], axis=1).reshape(-1, 2)],
    "plus": _PLUS,
    "cross": [np.sqrt(0.5) * np.stack([arm[:, 0] - arm[:, 1], arm.sum(axis=1)], axis=1) for arm in _PLUS],
    "bars": _BARS,
    "columns": [bar[:, ::-1] for bar in _BARS],
}
CLASSES = tuple(OUTLINES)


def draw_shapes(num_images, seed):
    """Draw a set; the classes take turns, and image i depends on (seed, i) alone.

    Args:
        num_images (int): how many.
        seed (int): of the drawings.

    Returns:
        LabelledImages: (num_images, 3, 32, 32), labels 0 to 9.
    """
    labels = np.arange(num_images, dtype=np.int64) % len(CLASSES)
    images = [_draw(np.random.default_rng([seed, i]), CLASSES[label]) for i, label in enumerate(labels)]
    images = np.stack(images).transpose(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W)
    return LabelledImages(np.ascontiguousarray(images), labels)


def _draw(rng, name):
    """One image: uint8, (SIDE, SIDE, 3)."""
    size = SIDE * SCALE
    ground, clutter, colour = rng.integers(10, 90, 3), rng.integers(10, 236, 3), rng.integers(80, 246, 3)
    while colour.mean() - ground.mean() < CONTRAST:
        colour = rng.integers(80, 246, 3)
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = ground
    for _ in range(rng.integers(0, 4)):  # specks, smaller than any shape
        place, radius = rng.integers(0, size, 2).tolist(), int(rng.integers(3, 9))
        cv2.circle(canvas, place, radius, clutter.tolist(), cv2.FILLED)

    radius = rng.uniform(0.24, 0.36) * size
    angle = np.deg2rad(rng.uniform(-12, 12))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(radius, size - radius, 2)
    for index, outline in enumerate(OUTLINES[name]):
        points = np.rint(outline * radius @ turn + centre).astype(np.int32)
        cv2.fillPoly(canvas, [points], (ground if name == "ring" and index else colour).tolist())

    image = cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    shade = rng.normal(0.0, 12.0, (3, 3, 3))
    image += cv2.resize(shade, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0.0, rng.uniform(2.0, 10.0), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def _load(split):
    def fill(folder):
        np.savez(folder / "images.npz", **vars(draw_shapes(*SPLITS[split])))

    folder = cached(f"shapes_cls_{split}-v{VERSION}", fill)
    try:
        with np.load(folder / "images.npz") as arrays:
            return LabelledImages(**arrays)
    except Exception as error:  # damaged archives raise many kinds
        raise ValueError(f"cannot read {folder} ({error}). Remove it: it is then made again.") from error


for _split in SPLITS:
    register_labelled_images(f"shapes_cls_{_split}", functools.partial(_load, _split), CLASSES)
