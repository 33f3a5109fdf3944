"""Reading image files so that a broken one is named."""

from detectron2.data import detection_utils


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
    try:
        return detection_utils.read_image(str(file_name), image_format)
    except Exception as error:  # by format: OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise BrokenImageError(
            f"cannot read the image {file_name} ({type(error).__name__}: {error}). Replace it or take it "
            "out of the data set; in training INPUT.SKIP_BROKEN True takes another image instead."
        ) from error
