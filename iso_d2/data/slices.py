"""Files of slices and their masks: read, checked and preprocessed."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from .lgg_preprocessing import preprocess_image, preprocess_mask
from .segmented_images import SegmentedImages

# Problems that an error lists; of the others it gives the number
LISTED = 8


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice of a patient and where its files are.

    Args:
        patient (str): name of the patient.
        number (int): of the slice within the patient.
        image (str): file of the RGB image, relative to the root of all.
        mask (str): file of the mask of 0 and 255, likewise.
    """

    patient: str
    number: int
    image: str
    mask: str


def preprocess_slices(name, root, slices, size):
    """Read, check and preprocess slices, several at a time, with a progress bar.

    Args:
        name (str): of the data set, for the progress bar and errors.
        root (Path): what the slices' files are relative to.
        slices (list[Slice]): in the order wanted.
        size (int): side of the preprocessed images in pixels.

    Returns:
        SegmentedImages: labels 0 and 1; the records hold ``file_name``, ``mask_file_name``, ``image_id``,
        ``height``, ``width``, ``patient``, ``slice`` and ``placement``; the files relative to ``root``.

    Raises:
        ValueError: files that cannot be read, or are not such images and masks; it lists the first ones.
    """
    images = np.empty((len(slices), 3, size, size), np.uint8)
    labels = np.empty((len(slices), size, size), np.uint8)
    records, problems = [], []

    def preprocess(index):
        image, mask, found = _read(root, slices[index])
        if found:
            return None, found
        images[index], placement = preprocess_image(image, size)
        labels[index] = preprocess_mask(mask, placement, size) // 255
        return _record(slices[index], mask.shape, placement), []

    # Threads: decoding and resizing happen outside Python, and nothing has to be copied between processes.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        done = pool.map(preprocess, range(len(slices)))
        for record, found in tqdm(done, total=len(slices), unit="slice", desc=f"preprocessing {name}"):
            records.append(record)
            problems += found
    raise_problems(name, root, problems)
    return SegmentedImages(images, labels, records)


def raise_problems(name, root, problems):
    """Raise a ValueError that lists the first of several problems, if there are any.

    Args:
        name (str): of the data set.
        root (Path): where its files are.
        problems (list[str]): one sentence without its full stop each.

    Raises:
        ValueError: ``problems`` is not empty.
    """
    if problems:
        left = len(problems) - LISTED
        lines = [*problems[:LISTED], *([f"... and {left:,} more"] if left > 0 else [])]
        listing = "\n  ".join(lines)
        raise ValueError(
            f"{name}, in {root}: {len(problems):,} problems. Copy the patients concerned anew from the "
            f"original data set, or move them away.\n  {listing}"
        )


def _record(piece, shape, placement):
    return {
        "file_name": piece.image,
        "mask_file_name": piece.mask,
        "image_id": f"{piece.patient}_{piece.number}",
        "height": shape[0],
        "width": shape[1],
        "patient": piece.patient,
        "slice": piece.number,
        "placement": placement,
    }


def _read(root, piece):
    """Image (H, W, 3) and mask (H, W), both uint8, and a list of what is wrong with them."""
    (image, wrong_image), (mask, wrong_mask) = (
        _read_file(root, name, mode) for name, mode in ((piece.image, "RGB"), (piece.mask, "L"))
    )
    problems = wrong_image + wrong_mask
    if not problems and mask.shape != image.shape[:2]:
        problems.append(f"{piece.mask} is of size {mask.shape}, its image of size {image.shape[:2]}")
    if mask is not None:
        others = np.setdiff1d(mask, (0, 255))
        if len(others):
            values = ", ".join(map(str, others[:5].tolist()))
            problems.append(f"{piece.mask} has values other than 0 and 255: {values}")
    return image, mask, problems


def _read_file(root, name, mode):
    """The pixels, None if there are none to be had, and a list of what is wrong."""
    try:
        with Image.open(root / name) as image:
            if image.mode != mode:
                wanted = {"RGB": "RGB (three channels of 8 bits)", "L": "L (one channel of 8 bits)"}[mode]
                return None, [f"{name} must be of mode {wanted}, got {image.mode}"]
            return np.asarray(image), []
    except Exception as error:  # by format: OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        return None, [f"{name} cannot be read ({type(error).__name__}: {error})"]
