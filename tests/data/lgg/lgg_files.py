"""A small tree of files named and made as LGG's are."""

import numpy as np
from PIL import Image

from iso_d2.data.lgg.patients import Patient

SIDE = 40
# Image and head, a rectangle in original pixels: rows and columns
HEAD = (slice(5, 35), slice(10, 30))
# Tumour of each slice: rows and columns; none in slice 1
TUMOURS = {2: (slice(10, 16), slice(12, 20)), 3: (slice(20, 24), slice(15, 18))}
PATIENTS = {
    "TCGA_B": Patient(index=0, slices=3, in_val=True, val_slices=frozenset({1})),
    "TCGA_A": Patient(index=1, slices=12, in_val=False, val_slices=frozenset({2, 11})),
    "TCGA_C": Patient(index=2, slices=3, in_val=False, val_slices=frozenset()),
}


def picture(number):
    """Image and mask of a slice."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[HEAD] = (100, 60 + number, 80)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if number in TUMOURS:
        mask[TUMOURS[number]] = 255
    return image, mask


def write_lgg(root):
    """Write the slices of all PATIENTS.

    Returns:
        Path: the folder of the patients.
    """
    folder = root / "lgg-mri-segmentation" / "kaggle_3m"
    for name, patient in PATIENTS.items():
        (folder / name).mkdir(parents=True)
        for number in range(1, patient.slices + 1):
            image, mask = picture(number)
            Image.fromarray(image).save(folder / name / f"{name}_{number}.tif")
            Image.fromarray(mask).save(folder / name / f"{name}_{number}_mask.tif")
    return folder
