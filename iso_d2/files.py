"""Files that are written whole or not at all, and image files that are read whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

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

    Args:
        file_name (str or Path): the file.
        image_format (str): "RGB", "BGR" or "L".

    Returns:
        ndarray: uint8, (H, W, 3), or (H, W, 1) for "L".

    Raises:
        BrokenImageError: the file cannot be read.
    """
    from detectron2.data import detection_utils

    try:
        return detection_utils.read_image(str(file_name), image_format)
    except Exception as error:  # by format: OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise BrokenImageError(
            f"cannot read the image {file_name} ({type(error).__name__}: {error}). Replace it or take it "
            "out of the data set; in training INPUT.SKIP_BROKEN True takes another image instead."
        ) from error
