"""NIfTI volumes as axial slices for a segmentation network, and masks back on the grid of the volume.

A slice is turned as the pictures of the LGG data set are: anterior at the top, the patient's right on the
left (the radiological view). The lowest slice comes first. So the array is brought to the axes L, P, S, which
lead to the patient's left, to the back and upwards; an oblique one by the axes closest to these.
"""

import dataclasses
import gzip
import logging
import math
from pathlib import Path

import numpy as np

from ..files import BrokenImageError, replacing

SUFFIXES = (".nii", ".nii.gz")
# What a header may declare, over all channels: 512 x 512 x 1024, which is 1 GiB as float32
MAX_VOXELS = 2**28
# Of the nonzero voxels, which become 0 and 255: zeros may be most of a volume, some voxels far too bright
PERCENTILES = (0.5, 99.5)

logger = logging.getLogger(__name__)


def nibabel_package():
    """The module nibabel; ImportError if it is missing."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"NIfTI volumes need nibabel ({error}): pip install iso_d2[medical]") from error
    return nibabel


@dataclasses.dataclass(frozen=True)
class Volume:
    """The axial slices of a NIfTI file.

    Attributes:
        slices (ndarray): uint8, (D, 3, H, W).
        image (nibabel.Nifti1Image): of the file.
        back (ndarray): nibabel's orientation that brings an array on the axes L, P, S to those of the file.
    """

    slices: np.ndarray
    image: object
    back: np.ndarray

    def write_mask(self, labels, file):
        """Write labels on the grid of the volume. The header stays but for type, scaling and display window.

        Args:
            labels (ndarray): uint8, (D, H, W), of the slices.
            file (Path): gzipped, whatever its name; it is replaced as a whole.
        """
        # (S, P, L) -> (L, P, S) -> the file's
        labels = nibabel_package().orientations.apply_orientation(labels.transpose(2, 1, 0), self.back)
        header = self.image.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        mask = type(self.image)(labels, self.image.affine, header)
        with replacing(file) as unfinished:
            unfinished.write_bytes(gzip.compress(mask.to_bytes(), mtime=0))


def read_volume(file):
    """Read a NIfTI file of one channel, or of three (4-D), as slices of 8 bits.

    Each channel becomes uint8 linearly, from PERCENTILES of its nonzero voxels to 0 and 255; what lies
    outside is clipped. One channel is taken three times. The log says how the slices lie.

    Args:
        file (str or Path): its name ends in .nii or .nii.gz.

    Returns:
        Volume

    Raises:
        BrokenImageError: it cannot be read as a whole, is no volume of real numbers, is too large, has
            another number of channels, values that are not finite, or nearly all of one value.
        ImportError: nibabel is missing.
    """
    nibabel = nibabel_package()
    try:
        if not Path(file).is_file():
            raise FileNotFoundError("there is no such file")  # nor a pipe, which may have no end
        image = nibabel.load(file)
        _check(image)
        if Path(file).suffix.lower() == ".gz":  # to its end, since nibabel stops before the checksum
            size = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
            with gzip.open(file) as stream:
                image = type(image).from_bytes(stream.read(size))
                while stream.read(2**20):
                    pass
        stored, wanted = nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt("LPS")
        if np.isnan(stored).any():
            raise ValueError("its affine is singular")
        values = image.get_fdata(dtype=np.float32, caching="unchanged")
        if number := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(f"{number} of its voxels are NaN or infinite: replace them, the background by 0")
        forth = nibabel.orientations.ornt_transform(stored, wanted)
        values = nibabel.orientations.apply_orientation(values.reshape(*values.shape[:3], -1), forth)
        # (L, P, S, C) -> (C, S, P, L) -> (S, C, P, L)
        slices = np.stack([_grey(channel) for channel in values.transpose(3, 2, 1, 0)], axis=1)
    except Exception as error:  # of nibabel, gzip and zlib, by fault
        raise BrokenImageError(f"cannot read the volume {file} ({type(error).__name__}: {error})") from error
    _say(file, image, slices.shape, np.argsort(forth[:, 0])[::-1])
    back = nibabel.orientations.ornt_transform(wanted, stored)
    return Volume(slices.repeat(3 // slices.shape[1], axis=1), image, back)


def _check(image):
    """Raise ValueError by what the header says, before any voxel is read."""
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)) or min(shape) < 1:
        raise ValueError(f"its shape is {shape}, not X x Y x Z, nor X x Y x Z x 3 for three channels")
    if math.prod(shape) > MAX_VOXELS:
        raise ValueError(f"its shape is {shape}, and {MAX_VOXELS} voxels are the most")
    if dtype.kind not in "iuf":
        raise ValueError(f"its values are of type {dtype}, not real numbers")
    if not np.isfinite(image.affine).all():
        raise ValueError("its affine is not finite")


def _grey(channel):
    nonzero = channel[channel != 0]
    low, high = np.percentile(nonzero, PERCENTILES).tolist() if nonzero.size else (0, 0)
    if not low < high:
        raise ValueError(f"nearly all voxels of a channel that are not 0 are {low:g}: that is no picture")
    return np.stack([np.interp(part, (low, high), (0, 255)).round().astype(np.uint8) for part in channel])


def _say(file, image, shape, axes):
    """Log how the slices lie: slices, rows and columns are counted along these axes of the file."""
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    spacing, unit = sizes[axes], image.header.get_xyzt_units()[0]
    apart = " x ".join(f"{size:g}" for size in spacing)
    said = f"{shape[0]} axial slices of {shape[2]} x {shape[3]}, spacing {apart}"
    logger.info("%s: %s (slices, rows, columns; unit %s)", file, said, unit)
    angle = np.degrees(np.arccos((np.abs(image.affine[:3, :3]).max(axis=0) / sizes).clip(max=1))).max()
    if angle > 0.1:
        logger.info("%s is oblique by up to %.1f degrees: slices follow the closest axes", file, angle)
    if shape[1] == 1:
        logger.warning("%s has one channel: a network trained on several sequences may find nothing", file)
    if not image.header["qform_code"] and not image.header["sform_code"]:
        logger.warning("%s does not say how it lies: its axes are taken as left, front and up", file)
    if max(spacing[1:]) > 1.5 * min(spacing[1:]):
        logger.warning("%s: pixels of its axial slices are %g x %g, far from square", file, *spacing[1:])
