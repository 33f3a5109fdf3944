"""Whether the segmentation of an annotation can be trusted.

pycocotools decodes a faulty one to a wrong mask, or crashes.
"""

import math


def is_finite_number(value):
    """bool: also False for an integer that is too large for a float."""
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:
        return False


def fault_of_segmentation(segmentation, height, width):
    """What is wrong with a segmentation, found before pycocotools sees it.

    Args:
        segmentation: as in a COCO file: a list of polygons [x0, y0, x1, y1, ...] in pixels, or RLE, a dict of
            ``size`` [height, width] and ``counts``, a list of run lengths or COCO's string of them.
        height, width (int): of the image, in pixels.

    Returns:
        str: what it must be instead; "" if nothing is wrong.
    """
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "a list of polygons, or RLE with size and counts"
    if segmentation["size"] not in ([height, width], (height, width)):
        return f"RLE of the image's size [{height}, {width}], got {segmentation['size']}"
    counts = segmentation["counts"]
    if isinstance(counts, (str, bytes)):
        counts = _run_lengths(counts.encode() if isinstance(counts, str) else counts)
    good = isinstance(counts, list) and all(isinstance(run, int) and run >= 0 for run in counts)
    if not good or sum(counts) != height * width:
        return f"RLE whose runs are {height * width} pixels in all"
    return ""


def _fault_of_polygons(polygons, height, width):
    if not all(isinstance(polygon, list) for polygon in polygons):
        return "polygons that are lists of numbers"
    numbers = [number for polygon in polygons for number in polygon]
    if not all(map(is_finite_number, numbers)):
        return "polygons of finite numbers"
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    if xs and ys and (max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height):
        return f"polygons within the {width}x{height} image"
    # pycocotools walks along every edge
    if any(abs(x) > 10 * width for x in xs) or any(abs(y) > 10 * height for y in ys):
        return f"polygons near the {width}x{height} image"
    return ""


def _run_lengths(code):
    """COCO's string of run lengths (bytes) -> list[int], or None if it is none.

    A number is written in groups of 5 bits, the lowest first, each as a character from "0" on; the 6th bit
    says that another group follows, the 5th of the last group is the sign. From the fourth number on it is
    the difference from the number before the last.
    """
    runs, value, shift = [], 0, 0
    for character in code:
        group = character - 48
        if not 0 <= group < 64 or shift > 30:
            return None
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs if shift == 0 else None
