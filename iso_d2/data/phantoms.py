"""phantom_train and phantom_test: drawn MRI slices of heads with tumours, made on first use.

They stand in for LGG in tests and at first contact: patients of several slices from below to above, in three
sequences as channels (in the second one, as in FLAIR, tumours are bright and fluid is dark), heads of many
sizes and places on black, noise and uneven brightness. Half of the slices, roughly, have a tumour, whose
outline and contrast vary. Skin is as bright as a tumour, so that brightness alone does not tell it.
"""

import functools
import logging
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from ..files import make_once
from .paths import cache_root
from .segmented_images import SegmentedImages, register_segmented_images
from .slices import Slice, preprocess_slices

# Part of the folder's name: raise it whenever the drawings change, or old caches stay in use.
VERSION = 1
SEED = 0
# Patients of each split, one after the other in one set
SPLITS = {"train": range(0, 20), "test": range(20, 25)}
SLICES = 16
# Pixels: side of the drawings, and of the preprocessed images
SIDE = 96
SIZE = 64
# Grey levels of each channel
SKIN = np.array([190, 170, 215])
BONE = np.array([14, 12, 16])
WHITE_MATTER = np.array([130, 85, 120])
GREY_MATTER = np.array([95, 120, 90])
FLUID = np.array([40, 25, 45])
# Fewer tumour pixels than this in a slice are not drawn
MIN_TUMOUR = 12

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Anatomy:
    """What the slices of one patient have in common. Lengths in half sides of the image, z from -1 to 1.

    Args:
        centre (ndarray): (2,), x and y of the head.
        axes (ndarray): (2,), half width and half length of the head where it is largest.
        angle (float): of the head, in radians.
        folds (ndarray): (8, 24, 24), coarse noise at as many heights, for the folds of the brain.
        ventricle (float): size of the ventricles.
        tumour (ndarray): (3,), x, y and z of its centre, in units of the head's axes.
        radius (float): of the tumour, in the same units.
        bumps (ndarray): (2, 3, 2), amplitudes of its outline: of sine and cosine, of 2, 3 and 5 bumps,
            constant and growing with z.
        contrast (ndarray): (3,), grey levels that the tumour adds to each channel.
        shade (ndarray): (3, 3), coarse field of the uneven brightness.
    """

    centre: np.ndarray
    axes: np.ndarray
    angle: float
    folds: np.ndarray
    ventricle: float
    tumour: np.ndarray
    radius: float
    bumps: np.ndarray
    contrast: np.ndarray
    shade: np.ndarray


def draw_anatomy(seed, patient):
    """Draw a patient, by (seed, patient) alone.

    Args:
        seed (int): of the set.
        patient (int): which one.

    Returns:
        Anatomy
    """
    rng = np.random.default_rng([seed, patient])
    width = rng.uniform(0.5, 0.66)
    axes = np.array([width, width * rng.uniform(1.15, 1.35)])
    side, direction = rng.choice([-1, 1]), rng.uniform(-1.1, 1.1)
    distance = rng.uniform(0.3, 0.5)
    tumour = [side * distance * np.cos(direction), distance * np.sin(direction), rng.uniform(-0.25, 0.45)]
    return Anatomy(
        centre=rng.uniform(-1, 1, 2) * (0.93 - axes).clip(0, 0.25),
        axes=axes,
        angle=rng.uniform(-0.2, 0.2),
        folds=rng.normal(0.0, 1.0, (8, 24, 24)),
        ventricle=rng.uniform(0.8, 1.2),
        tumour=np.array(tumour),
        radius=rng.uniform(0.26, 0.42),
        bumps=rng.normal(0.0, 1.0, (2, 3, 2)) * np.array([0.12, 0.08, 0.05])[:, None],
        contrast=np.array([-0.2, 1.0, rng.uniform(0.0, 0.4)]) * rng.uniform(55, 110),
        shade=rng.uniform(0.8, 1.2, (3, 3)),
    )


def draw_phantom(seed, patient, number):
    """Draw a slice, by (seed, patient, number) alone.

    Args:
        seed (int): of the set.
        patient (int): which one.
        number (int): of the slice, from 1 (below) to SLICES (above).

    Returns:
        tuple: ndarray, uint8, (SIDE, SIDE, 3), the image, and ndarray, uint8, (SIDE, SIDE), the mask: 0 and,
        in the tumour, 255.
    """
    anatomy = draw_anatomy(seed, patient)
    rng = np.random.default_rng([seed, patient, number])
    z = 2 * (number - 0.5) / SLICES - 1
    # The head is an ellipsoid cut off below, where it is widest at a third of its height.
    scale = np.sqrt(1 - (max(0.0, z + 0.3) / 1.32) ** 2) * (1 - 0.12 * max(0.0, -0.3 - z))
    x, y = _head_coordinates(anatomy)
    radius = np.hypot(x, y) / scale

    brain = _brain(anatomy, x, y, z, radius)
    depth, mask = _tumour(anatomy, x, y, z, radius)
    if mask.sum() < MIN_TUMOUR:
        mask[:] = False
    else:
        brain = brain + _edge(depth)[..., None] * anatomy.contrast
    image = BONE + _edge(0.82 - radius)[..., None] * (brain - BONE)
    image = image + _edge(radius - 0.9)[..., None] * (SKIN - BONE)
    image = image * cv2.resize(anatomy.shade, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)[..., None]
    image = image * _edge(1.0 - radius)[..., None]
    # The magnitude of a complex signal with normal noise, as MRI has it: not zero on black ground either
    noise = rng.normal(0.0, rng.uniform(3.0, 5.0), (2, *image.shape))
    image = np.hypot(image + noise[0], noise[1])
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask.astype(np.uint8) * 255


def _head_coordinates(anatomy):
    """x and y of each pixel in units of the head's axes, turned with it: (SIDE, SIDE) each."""
    line = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    x, y = np.meshgrid(line - anatomy.centre[0], line - anatomy.centre[1])
    sine, cosine = np.sin(anatomy.angle), np.cos(anatomy.angle)
    return (cosine * x + sine * y) / anatomy.axes[0], (cosine * y - sine * x) / anatomy.axes[1]


def _edge(distance):
    """0 outside to 1 inside, over about two pixels; the distance is in units of the head's axes."""
    return np.clip(0.5 + distance * SIDE / 6, 0.0, 1.0)


def _brain(anatomy, x, y, z, radius):
    """Grey levels of the brain without tumour and without end: (SIDE, SIDE, 3)."""
    height = (z + 1) / 2 * (len(anatomy.folds) - 1)
    below = int(height)
    part = height - below
    coarse = (1 - part) * anatomy.folds[below] + part * anatomy.folds[below + 1]
    noise = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    # Folds wind along the zeros of the noise, deeper near the surface: grey matter with fluid in between.
    depth = np.clip(2.2 * radius - 0.4, 0.0, 1.0)
    grey = depth * np.clip(1.6 - 1.8 * np.abs(noise), 0.0, 1.0)
    fluid = depth * np.clip(0.8 - 5.0 * np.abs(noise), 0.0, 1.0)
    brain = WHITE_MATTER + grey[..., None] * (GREY_MATTER - WHITE_MATTER)
    brain = brain + fluid[..., None] * (FLUID - brain)

    size = anatomy.ventricle * np.sqrt(max(0.0, 1 - (z / 0.55) ** 2))
    if size > 0.1:
        horns = np.hypot((np.abs(x) - 0.13 - 0.1 * y**2) / 0.08, y / 0.36)
        brain = brain + _edge(0.08 * (size - horns))[..., None] * (FLUID - brain)
    gap = _edge(0.015 - np.abs(x))[..., None] * (np.abs(y) > 0.4)[..., None]
    return brain + gap * (FLUID - brain)


def _tumour(anatomy, x, y, z, radius):
    """How deep each pixel lies inside the tumour, in units of the head's axes, and bool, where it is that."""
    dx, dy = x - anatomy.tumour[0], y - anatomy.tumour[1]
    dz = (z - anatomy.tumour[2]) / 1.5
    angle = np.arctan2(dy, dx)
    outline = 1.0
    for number, (sine, cosine) in zip((2, 3, 5), anatomy.bumps[0] + 3 * dz * anatomy.bumps[1], strict=True):
        outline = outline + sine * np.sin(number * angle) + cosine * np.cos(number * angle)
    reach = np.sqrt(max(0.0, anatomy.radius**2 - dz**2))
    # A tumour ends where the brain does.
    depth = np.minimum(reach * outline - np.hypot(dx, dy), 0.8 - radius)
    return depth, depth > 0


def make_phantoms(folder):
    """Draw all patients of both splits, write them down and preprocess them as LGG is.

    Args:
        folder (Path): an existing folder; gets ``<patient>/<patient>_<slice>.png`` with a
            ``<patient>_<slice>_mask.png`` each, and the arrays of SegmentedImages.
    """
    slices = []
    for patient in (patient for patients in SPLITS.values() for patient in patients):
        name = _name(patient)
        (folder / name).mkdir()
        for number in range(1, SLICES + 1):
            stem = f"{name}/{name}_{number}"
            image, mask = draw_phantom(SEED, patient, number)
            Image.fromarray(image).save(folder / f"{stem}.png")
            Image.fromarray(mask).save(folder / f"{stem}_mask.png")
            slices.append(Slice(name, number, f"{stem}.png", f"{stem}_mask.png"))
    preprocess_slices("phantoms", folder, slices, SIZE).save(folder)


def load_phantoms():
    """The slices of both splits; on first use they are made.

    Returns:
        SegmentedImages: ordered by patient and slice.

    Raises:
        ValueError: the cache is damaged.
    """
    folder = cache_root() / f"phantoms-v{VERSION}"
    if not folder.is_dir():
        logger.info("drawing the phantoms into %s", folder)
    make_once(folder, make_phantoms)
    return SegmentedImages.load(folder, folder)


def _name(patient):
    return f"phantom{patient:03d}"


def _choose(split, records):
    names = {_name(patient) for patient in SPLITS[split]}
    return [index for index, record in enumerate(records) if record["patient"] in names]


for _split in SPLITS:
    register_segmented_images(f"phantom_{_split}", load_phantoms, functools.partial(_choose, _split), SIZE)
