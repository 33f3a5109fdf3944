"""phantom_train and phantom_test: drawn MRI slices of heads with tumours, made on first use.

They stand in for LGG in tests and at first contact: patients of several slices from below to above, in three
sequences as channels (in the second one, as in FLAIR, tumours are bright and fluid is dark), heads of many
sizes and places on black, noise and uneven brightness. Half of the slices, roughly, have a tumour, whose
outline and contrast vary. Skin is as bright as a tumour, so that brightness alone does not tell it.
"""

import functools
import itertools

import cv2
import numpy as np
from PIL import Image

from ..arrays import SegmentedImages, register_segmented_images
from ..catalog import cached
from ..lgg.preprocessing import Preprocessing
from ..lgg.slices import Slice, preprocess_slices

# Part of the folder's name: raise it whenever the drawings change, or old caches stay in use.
VERSION = 2
SEED = 0
# Patients of each split, one after the other in one set
SPLITS = {"train": range(0, 20), "test": range(20, 25)}
SLICES = 16
SIDE = 96  # of the drawings, in pixels
PREPROCESSING = Preprocessing(size=64)
# Grey levels of each channel
SKIN = np.array([190, 170, 215])
BONE = np.array([14, 12, 16])
WHITE_MATTER = np.array([130, 85, 120])
GREY_MATTER = np.array([95, 120, 90])
FLUID = np.array([40, 25, 45])
# Fewer tumour pixels than this in a slice are not drawn
MIN_TUMOUR = 12


class Phantom:
    """A patient, drawn by the numbers (seed, patient) alone.

    Lengths are in half widths of the head, z is from -1 to 1.
    """

    def __init__(self, seed, patient):
        self.seed = seed, patient
        rng = np.random.default_rng(self.seed)
        width = rng.uniform(0.5, 0.66)  # half a width, in half sides of the image
        self.axes = np.array([width, width * rng.uniform(1.15, 1.35)])
        side, direction = rng.choice([-1, 1]), rng.uniform(-1.1, 1.1)
        distance = rng.uniform(0.3, 0.5)
        x, y = side * distance * np.cos(direction), distance * np.sin(direction)
        self.tumour = x, y, rng.uniform(-0.25, 0.45)
        self.centre = rng.uniform(-1, 1, 2) * (0.93 - self.axes).clip(0, 0.25)
        self.angle = rng.uniform(-0.2, 0.2)
        self.folds = rng.normal(0.0, 1.0, (8, 24, 24))  # of the brain: coarse noise at as many heights
        self.ventricle = rng.uniform(0.8, 1.2)
        self.radius = rng.uniform(0.26, 0.42)  # of the tumour
        # Amplitudes of its outline: of sine and cosine, of 2, 3 and 5 bumps, constant and growing with z
        self.bumps = rng.normal(0.0, 1.0, (2, 3, 2)) * np.array([0.12, 0.08, 0.05])[:, None]
        self.contrast = np.array([-0.2, 1.0, rng.uniform(0.0, 0.4)]) * rng.uniform(55, 110)
        self.shade = rng.uniform(0.8, 1.2, (3, 3))  # coarse field of the uneven brightness

    def draw(self, number):
        """Draw slice ``number``, from 1 (below) to SLICES (above), by (seed, patient, number) alone.

        Returns:
            tuple[ndarray, ndarray]: the image, uint8, (SIDE, SIDE, 3), and the mask, uint8, (SIDE, SIDE): 255
            in the tumour, else 0.
        """
        rng = np.random.default_rng([*self.seed, number])
        z = 2 * (number - 0.5) / SLICES - 1
        # The head is an ellipsoid cut off below, where it is widest at a third of its height.
        scale = np.sqrt(1 - (max(0.0, z + 0.3) / 1.32) ** 2) * (1 - 0.12 * max(0.0, -0.3 - z))
        x, y = self._head_coordinates()
        radius = np.hypot(x, y) / scale

        image = self._brain(x, y, z, radius)
        # A tumour ends where the brain does.
        depth = np.minimum(self._tumour_depth(x, y, z), 0.8 - radius)
        mask = depth > 0
        if mask.sum() < MIN_TUMOUR:
            mask[:] = False
        else:
            image = image + _edge(depth) * self.contrast
        image = BONE + _edge(0.82 - radius) * (image - BONE)
        image = image + _edge(radius - 0.9) * (SKIN - BONE)
        image = image * _smooth(self.shade)[..., None]
        image = image * _edge(1.0 - radius)
        # The magnitude of a complex signal with normal noise, as MRI has it: not zero on black ground either
        noise = rng.normal(0.0, rng.uniform(3.0, 5.0), (2, *image.shape))
        image = np.hypot(image + noise[0], noise[1])
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask.astype(np.uint8) * 255

    def _head_coordinates(self):
        """x and y of each pixel in units of the head's axes, turned with it: (SIDE, SIDE) each."""
        line = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
        x, y = np.meshgrid(line - self.centre[0], line - self.centre[1])
        sine, cosine = np.sin(self.angle), np.cos(self.angle)
        return (cosine * x + sine * y) / self.axes[0], (cosine * y - sine * x) / self.axes[1]

    def _brain(self, x, y, z, radius):
        """Grey levels of the brain without tumour and without end: (SIDE, SIDE, 3)."""
        height = (z + 1) / 2 * (len(self.folds) - 1)
        below, part = int(height), height % 1
        noise = np.abs(_smooth((1 - part) * self.folds[below] + part * self.folds[below + 1]))[..., None]
        # Folds wind along the zeros of the noise, deeper near the surface: grey matter with fluid in between.
        depth = np.clip(2.2 * radius - 0.4, 0.0, 1.0)[..., None]
        grey = depth * np.clip(1.6 - 1.8 * noise, 0.0, 1.0)
        fluid = depth * np.clip(0.8 - 5.0 * noise, 0.0, 1.0)
        brain = WHITE_MATTER + grey * (GREY_MATTER - WHITE_MATTER)
        brain = brain + fluid * (FLUID - brain)
        size = self.ventricle * np.sqrt(max(0.0, 1 - (z / 0.55) ** 2))
        if size > 0.1:
            horns = np.hypot((np.abs(x) - 0.13 - 0.1 * y**2) / 0.08, y / 0.36)
            brain = brain + _edge(0.08 * (size - horns)) * (FLUID - brain)
        gap = _edge(0.015 - np.abs(x)) * (np.abs(y) > 0.4)[..., None]
        return brain + gap * (FLUID - brain)

    def _tumour_depth(self, x, y, z):
        """How deep each pixel lies inside the tumour: (SIDE, SIDE)."""
        dx, dy, dz = x - self.tumour[0], y - self.tumour[1], (z - self.tumour[2]) / 1.5
        angle = np.arctan2(dy, dx)
        outline = 1.0
        for number, (sine, cosine) in zip((2, 3, 5), self.bumps[0] + 3 * dz * self.bumps[1], strict=True):
            outline = outline + sine * np.sin(number * angle) + cosine * np.cos(number * angle)
        return np.sqrt(max(0.0, self.radius**2 - dz**2)) * outline - np.hypot(dx, dy)


def _edge(distance):
    """0 outside to 1 inside, over about two pixels: (SIDE, SIDE, 1)."""
    return np.clip(0.5 + distance * SIDE / 6, 0.0, 1.0)[..., None]


def _smooth(coarse):
    return cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def make_phantoms(folder):
    """Draw all patients of both splits, write them down and preprocess them as LGG is.

    Args:
        folder (Path): an existing folder; gets ``<patient>/<patient>_<slice>.png`` with a
            ``<patient>_<slice>_mask.png`` each, and the arrays of SegmentedImages.
    """
    slices = []
    for patient in itertools.chain(*SPLITS.values()):
        name, phantom = f"phantom{patient:03d}", Phantom(SEED, patient)
        (folder / name).mkdir()
        for number in range(1, SLICES + 1):
            slices.append(Slice(name, number, ".png"))
            for file, array in zip((slices[-1].image, slices[-1].mask), phantom.draw(number), strict=True):
                Image.fromarray(array).save(folder / file)
    preprocess_slices("phantoms", folder, slices, PREPROCESSING).save(folder)


def load_phantoms():
    """SegmentedImages: the slices of both splits, by patient and number; on first use they are made."""
    folder = cached(f"phantoms-v{VERSION}", make_phantoms)
    return SegmentedImages.load(folder, folder)


def _choose(split, records):
    return [index for index, record in enumerate(records) if int(record["patient"][-3:]) in SPLITS[split]]


for _split in SPLITS:
    register_segmented_images(
        f"phantom_{_split}", load_phantoms, functools.partial(_choose, _split), PREPROCESSING.size
    )
