"""Patients of a few tiny slices with a bright square as tumour, and a UNet small enough for seconds."""

import numpy as np
from PIL import Image

from iso_d2.data.arrays import SegmentedImages, register_segmented_images
from iso_d2.placement import Placement

SIDE = 16
SLICES = 3
UNET = ["MODEL.META_ARCHITECTURE", "UNetSegmentor", "MODEL.UNET.BASE_CHANNELS", "2", "MODEL.UNET.DEPTH", "2"]
UNET += ["INPUT.FORMAT", "RGB", "INPUT.ALBUMENTATIONS.TRAIN", "[]", "INPUT.ALBUMENTATIONS.TEST", "[]"]
UNET += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.BASE_LR", "0.1", "SOLVER.STEPS", "()"]
UNET += ["MODEL.UNET.LOSS", "dice_bce", "SOLVER.WARMUP_ITERS", "0", "DATALOADER.NUM_WORKERS", "0"]
UNET += ["MODEL.DEVICE", "cpu", "SEED", "1", "TEST.VISUALIZE", "0", "SOLVER.CHECKPOINT_MINUTES", "0.0"]


def slices_of(folder, patients):
    """SegmentedImages of patients (sequence of str), with their files in a folder (Path).

    The first slice of each has no tumour.
    """
    images, labels, records = [], [], []
    for patient in patients:
        rng = np.random.default_rng(sum(map(ord, patient)))
        for number in range(1, SLICES + 1):
            image = rng.integers(0, 80, (SIDE, SIDE, 3)).astype(np.uint8)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            if number > 1:
                top, left = rng.integers(0, SIDE - 6, 2)
                mask[top : top + 6, left : left + 6] = 1
                image[mask > 0] += 150
            stem = f"{patient}_{number}"
            Image.fromarray(image).save(folder / f"{stem}.png")
            Image.fromarray(255 * mask).save(folder / f"{stem}_mask.png")
            images.append(image.transpose(2, 0, 1))
            labels.append(mask)
            records.append(
                {
                    "file_name": str(folder / f"{stem}.png"),
                    "mask_file_name": str(folder / f"{stem}_mask.png"),
                    "image_id": stem,
                    "height": SIDE,
                    "width": SIDE,
                    "patient": patient,
                    "slice": number,
                    "placement": Placement(0, 0, SIDE, SIDE),
                }
            )
    return SegmentedImages(np.stack(images), np.stack(labels), records)


def register_patients(name, folder, patients, order=None):
    """Register a data set of patients (sequence of str); `order` is the frozen one."""
    folder.mkdir(exist_ok=True)
    whole = slices_of(folder, patients)
    register_segmented_images(name, lambda: whole, lambda records: list(range(len(records))), SIDE, order)
