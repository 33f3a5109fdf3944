"""From a slice of any size to the network's square input: crop to the head, pad, resize.

It follows the report's section 4.1, and settles what that leaves open: where the head ends, and the way back.
The mask has no part in the choice of the crop, since it is unknown where the network is used.
"""

import dataclasses

import cv2
import numpy as np

from ...placement import Placement


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The settings, whose hash is part of the cache's name.

    Args:
        size (int): side of the result in pixels.
        threshold (int): grey levels by which the head stands out from the background. That has values up to
            about 20, in single pixels or as a faint haze, and skin hardly ever less than 40. With 20 the
            crops of all 3,929 slices keep every tumour pixel.
        background (float): percentile of a channel's outermost pixels that is its background: 60 to 100 in
            the first sequence of three patients, elsewhere 0 or nearly so. Not the median, since a large head
            takes up much of the frame.
        median (int): width in pixels of the median that removes single bright ones.
        min_piece (float): smaller bright pieces, as a share of the image, are markers beside the head, or no
            head at all. A marker has about 0.2 %; where the skin seems to break into pieces, each has more.
        version (int): raise it whenever the code changes what comes out, or old caches stay in use.
    """

    size: int = 224
    threshold: int = 20
    background: float = 25
    median: int = 5
    min_piece: float = 0.01
    version: int = 2

    def find_head(self, image):
        """The smallest box around the head: all that stands out in any channel, without specks.

        Args:
            image (ndarray): uint8, (H, W, 3).

        Returns:
            Placement: the whole image if nothing in it is bright enough.
        """
        frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        ground = np.percentile(frame, self.background, axis=0, method="lower").astype(np.uint8)  # (3,)
        brightness = cv2.subtract(image, np.broadcast_to(ground, image.shape)).max(axis=2)
        bright = (cv2.medianBlur(brightness, self.median) >= self.threshold).astype(np.uint8)
        pieces = cv2.connectedComponentsWithStats(bright)[2][1:]  # 0 is the background
        pieces = pieces[pieces[:, cv2.CC_STAT_AREA] >= self.min_piece * bright.size]
        if len(pieces) == 0:
            return Placement(0, 0, *bright.shape)
        corners = pieces[:, [cv2.CC_STAT_TOP, cv2.CC_STAT_LEFT]]
        ends = corners + pieces[:, [cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]]
        corner = corners.min(axis=0)
        return Placement(*corner.tolist(), *(ends.max(axis=0) - corner).tolist())

    def __call__(self, image):
        """Crop an image to the head, pad it with zeros to a square, the head in the middle, and resize it.

        Args:
            image (ndarray): uint8, (H, W, 3).

        Returns:
            tuple[ndarray, Placement]: the pixels, uint8, (3, size, size), and where they come from.

        Source: the report, section 4.1.
        """
        placement = self.find_head(image)
        pixels = placement.cut(image, self.size).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        return np.ascontiguousarray(pixels), placement
