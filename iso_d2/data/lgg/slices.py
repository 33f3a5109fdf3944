"""Files of slices and their masks: found, read, checked and preprocessed."""

import dataclasses
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..arrays import SegmentedImages

# Problems that an error lists; of the others it gives the number
LISTED = 8
MODES = {"RGB": "RGB (three channels of 8 bits)", "L": "L (one channel of 8 bits)"}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice of a patient and where its files are, relative to the root of all."""

    patient: str
    number: int
    suffix: str = ".tif"

    @property
    def image_id(self):
        return f"{self.patient}_{self.number}"

    @property
    def image(self):
        """str: file of the RGB image."""
        return f"{self.patient}/{self.image_id}{self.suffix}"

    @property
    def mask(self):
        """str: file of the mask of 0 and 255."""
        return f"{self.patient}/{self.image_id}_mask{self.suffix}"


def list_patient(root, name, count):
    """The slices of a patient, 1 to count (list[Slice]), and what is wrong with them, a sentence each (list).

    Hidden files and all that do not end in .tif do not matter.
    """
    images, masks, problems = set(), set(), []
    for file in sorted((root / name).glob("[!.]*.tif")):
        match = re.fullmatch(rf"{re.escape(name)}_([1-9]\d*)(|_mask)\.tif", file.name)
        if match:
            (masks if match[2] else images).add(int(match[1]))
        else:
            problems.append(f"{name}/{file.name} is not named {name}_<slice>.tif or {name}_<slice>_mask.tif")
    if not images | masks:
        return [], [*problems, f"{name} is empty: it has no .tif files"]
    wanted = set(range(1, count + 1))
    for found, sentence in (
        (images - masks, "has no mask of"),
        (masks - images, "has masks without images of"),
        (wanted - images - masks, f"lacks, of its {count} slices,"),
        ((images | masks) - wanted, f"has {count} slices, but there are also"),
    ):
        if found:
            problems.append(f"{name} {sentence} slice {', '.join(map(str, sorted(found)))}")
    return [Slice(name, number) for number in sorted(images & masks)], problems


def preprocess_slices(name, root, slices, preprocessing):
    """Read, check and preprocess slices, several at a time, with a progress bar.

    Args:
        name (str): of the data set, for the progress bar and errors.
        root (Path): what the slices' files are relative to.
        slices (list[Slice]): in the order wanted.
        preprocessing (Preprocessing): how.

    Returns:
        SegmentedImages: labels 0 and 1; the records hold ``file_name``, ``mask_file_name``, ``image_id``,
        ``height``, ``width``, ``patient``, ``slice`` and ``placement``; the files relative to ``root``.

    Raises:
        ValueError: files that cannot be read, or are not such images and masks; it lists the first ones.
    """
    size = preprocessing.size
    images = np.empty((len(slices), 3, size, size), np.uint8)
    labels = np.empty((len(slices), size, size), np.uint8)

    def preprocess(index):
        piece = slices[index]
        image, mask, problems = _read(root, piece)
        if problems:
            return None, problems
        images[index], placement = preprocessing(image)
        labels[index] = placement.cut(mask, size, nearest=True) // 255
        record = {
            "file_name": piece.image,
            "mask_file_name": piece.mask,
            "image_id": piece.image_id,
            "height": mask.shape[0],
            "width": mask.shape[1],
            "patient": piece.patient,
            "slice": piece.number,
            "placement": placement,
        }
        return record, []

    done = in_threads(f"preprocessing {name}", preprocess, range(len(slices)))
    raise_problems(name, root, [problem for _, problems in done for problem in problems])
    return SegmentedImages(images, labels, [record for record, _ in done])


def in_threads(title, function, arguments):
    """Apply a function to each argument, with a progress bar; list of results."""
    # Threads: decoding and resizing happen outside Python, and nothing has to be copied between processes.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(tqdm(pool.map(function, arguments), total=len(arguments), unit="slice", desc=title))


def raise_problems(name, root, problems):
    """Raise a ValueError that lists the first of the problems (list[str]) of a data set, if there are any."""
    if problems:
        left = len(problems) - LISTED
        listing = "\n  ".join([*problems[:LISTED], *([f"... and {left:,} more"] if left > 0 else [])])
        raise ValueError(
            f"{name}, in {root}: {len(problems):,} problems. Copy the patients concerned anew from the "
            f"original data set, or move them away.\n  {listing}"
        )


def _read(root, piece):
    """Image (H, W, 3) and mask (H, W), both uint8, and a list of what is wrong with them."""
    arrays, problems = [], []
    for name, mode in ((piece.image, "RGB"), (piece.mask, "L")):
        try:
            with Image.open(root / name) as image:
                arrays.append(np.asarray(image))
                if image.mode != mode:
                    problems.append(f"{name} must be of mode {MODES[mode]}, got {image.mode}")
        except (
            Exception
        ) as error:  # by format: OSError, SyntaxError, ValueError, struct.error, zlib.error ...
            problems.append(f"{name} cannot be read ({type(error).__name__}: {error})")
    if problems:
        return None, None, problems
    image, mask = arrays
    if mask.shape != image.shape[:2]:
        problems.append(f"{piece.mask} is of size {mask.shape}, its image of size {image.shape[:2]}")
    others = np.setdiff1d(mask, (0, 255)).tolist()
    if others:
        problems.append(f"{piece.mask} has values other than 0 and 255: {', '.join(map(str, others[:5]))}")
    return image, mask, problems
