"""From a slice of any size to the network's square input: crop to the head, pad, resize.

As the report's section 4.1 has it, with what it leaves open: where the head ends, and how to come back. The
mask has no part in the choice of the crop, since it is unknown where the network is used.
"""

import cv2
import numpy as np

SIZE = 224
# Grey levels above the background. That has values up to about 20, in single pixels or as a faint haze, and
# skin hardly ever less than 40. With 20 the crops of all 3,929 slices keep every tumour pixel.
THRESHOLD = 20
# Percentile of a channel's outermost pixels that is its background: 60 to 100 in the first sequence of three
# patients, elsewhere 0 or nearly so. Not the median, since a large head takes up much of the frame.
BACKGROUND = 25
# Pixels; a median of this width removes single bright ones
MEDIAN = 5
# Of the whole image: smaller bright pieces are markers beside the head, or no head at all. A marker has about
# 0.2 %; where the skin seems to break into pieces, each has more.
MIN_PIECE = 0.01


def find_head(image):
    """The smallest box around the head: all that stands out in any channel, without specks.

    Args:
        image (ndarray): uint8, (H, W, 3).

    Returns:
        tuple[int]: top, left, height, width in pixels; the whole image if nothing in it is bright enough.
    """
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    background = np.percentile(frame, BACKGROUND, axis=0, method="lower").astype(np.uint8)  # (3,)
    brightness = cv2.subtract(image, np.broadcast_to(background, image.shape)).max(axis=2)
    bright = cv2.medianBlur(brightness, MEDIAN) >= THRESHOLD
    _, _, statistics, _ = cv2.connectedComponentsWithStats(bright.astype(np.uint8))
    pieces = statistics[1:]  # 0 is the background
    pieces = pieces[pieces[:, cv2.CC_STAT_AREA] >= MIN_PIECE * bright.size]
    if len(pieces) == 0:
        return 0, 0, *bright.shape
    corner = pieces[:, [cv2.CC_STAT_TOP, cv2.CC_STAT_LEFT]]
    extent = pieces[:, [cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]]
    top, left = corner.min(axis=0).tolist()
    bottom, right = (corner + extent).max(axis=0).tolist()
    return top, left, bottom - top, right - left


def preprocess_image(image, size=SIZE):
    """Crop an image to the head, pad it with zeros to a square, the head in the middle, and resize it.

    Args:
        image (ndarray): uint8, (H, W, 3).
        size (int): side of the result in pixels.

    Returns:
        tuple: ndarray, uint8, (3, size, size), and its placement, a dict of ints in pixels of the original:
        ``top``, ``left``, ``height``, ``width`` of the crop, ``pad_top``, ``pad_left``, where the crop lies
        in the square, and ``side`` of the square.

    Source: the report, section 4.1.
    """
    top, left, height, width = find_head(image)
    side = max(height, width)
    placement = {
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "pad_top": (side - height) // 2,
        "pad_left": (side - width) // 2,
        "side": side,
    }
    square = _cut_out(image, placement)
    # Areas are averaged when the image shrinks; when it grows they would give blocks.
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    resized = cv2.resize(square, (size, size), interpolation=interpolation)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)), placement  # (H, W, 3) -> (3, H, W)


def preprocess_mask(mask, placement, size=SIZE):
    """Crop, pad and resize a mask like its image, by nearest neighbour.

    Args:
        mask (ndarray): uint8, (H, W).
        placement (dict): of its image.
        size (int): side of the result in pixels.

    Returns:
        ndarray: uint8, (size, size), with values of ``mask`` and 0.
    """
    square = _cut_out(mask, placement)
    # cv2.INTER_NEAREST would shift the mask against the image by up to half a pixel.
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def _cut_out(array, placement):
    source, target = (
        (slice(top, top + placement["height"]), slice(left, left + placement["width"]))
        for top, left in (
            (placement["top"], placement["left"]),
            (placement["pad_top"], placement["pad_left"]),
        )
    )
    side = placement["side"]
    square = np.zeros((side, side, *array.shape[2:]), array.dtype)
    square[target] = array[source]
    return square
