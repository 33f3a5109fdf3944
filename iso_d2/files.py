"""Files that are written whole or not at all, and image files that are read whole or not at all."""

import contextlib
import csv
import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Of the image files that are looked for in a folder
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@contextlib.contextmanager
def replacing(path):
    """A file beside `path` to write to, which takes its place once it is complete.

    Args:
        path (str or Path): the file wanted; its folder is made if needed.

    Yields:
        Path: an empty file in the same folder. When the block raises it goes, and `path` stays as it was. It
        is on the disk before it takes its place, so that a power failure leaves the one or the other.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(0o644)
        _sync(unfinished, os.O_RDWR)
        os.replace(unfinished, path)
        with contextlib.suppress(OSError):  # some file systems cannot do it with folders
            _sync(path.parent, os.O_RDONLY)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _sync(path, flags):
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path, text):
    """Write a text file so that nobody ever sees half of it, making its folder if needed."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def as_csv(rows):
    """str: rows (list[dict], with the same keys) as a table with a header."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def make_once(folder, fill):
    """Make a folder by ``fill`` if it does not exist, so that nobody ever sees it half full.

    It is filled under another name and then renamed. If several processes do so at once, one wins and the
    others take its folder.

    Args:
        folder (Path): the folder wanted; its parent exists.
        fill (callable): called with the path of an empty folder.

    Returns:
        Path: ``folder``.
    """
    if folder.is_dir():
        return folder
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".unfinished", dir=folder.parent))
    try:
        fill(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


class BrokenImageError(OSError):
    """An image file that is missing, truncated or no image."""


def read_image(file_name, image_format):
    """Read an image as Detectron2 does (EXIF orientation applied), naming the file when that fails.

    Values of 16 bits become 8 bits: (v + 128) // 257.

    Args:
        file_name (str or Path): the file.
        image_format (str): "RGB", "BGR" or "L".

    Returns:
        ndarray: uint8, (H, W, 3), or (H, W, 1) for "L".

    Raises:
        BrokenImageError: the file cannot be read as a whole, or has values of 32 bits.
    """
    return _read(file_name, image_format, _scaled_to_8_bits)


def read_label_image(file_name):
    """Read an image whose values are labels: they are not scaled.

    Returns:
        ndarray: uint8, (H, W).

    Raises:
        BrokenImageError: as :func:`read_image`, or labels above 255.
    """
    return _read(file_name, "L", _small_labels)[:, :, 0]


def _read(file_name, image_format, to_8_bits):
    from detectron2.data import detection_utils
    from detectron2.utils.file_io import PathManager

    try:
        path = PathManager.get_local_path(str(file_name))
        if not Path(path).is_file():
            raise FileNotFoundError("there is no such file")  # nor a pipe, which may have no end
        with Image.open(path) as image:
            return detection_utils.convert_PIL_to_numpy(upright_8_bits(image, to_8_bits), image_format)
    except Exception as error:  # by format: OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise BrokenImageError(
            f"cannot read the image {file_name} ({type(error).__name__}: {error}). Replace it or take it "
            "out of the data set; in training INPUT.SKIP_BROKEN True takes another image instead."
        ) from error


def _scaled_to_8_bits(values):
    return (values + 128) // 257


def upright_8_bits(image, to_8_bits=_scaled_to_8_bits):
    """A PIL image turned as its EXIF data say, values of 16 bits by `to_8_bits`.

    Raises:
        ValueError: values of 32 bits. Of Pillow what it raises where pixels are missing.
    """
    image.load()  # reading the EXIF data first would hide that pixels are missing
    # Pillow's "I" is 32 bits, but for PNG, which has none
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    if has_16_bits:
        return Image.fromarray(to_8_bits(np.asarray(image).astype(np.uint32)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its values have 32 bits and an unknown range: convert it to 8 or 16 bits")
    return image


def _small_labels(labels):
    if labels.max(initial=0) > 255:
        raise ValueError(f"its labels go up to {labels.max()}, and 255 is the largest")
    return labels
