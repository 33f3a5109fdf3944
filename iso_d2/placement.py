"""Where the square that a network sees lies in its original image."""

import dataclasses

import cv2
import numpy as np
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Placement:
    """A box of an image, in the middle of a square of zeros as long as its longer side.

    Args:
        top, left (int): first row and column of the box, in pixels of the image.
        height, width (int): of the box.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def side(self):
        """int: of the square, in pixels of the image."""
        return max(self.height, self.width)

    def _windows(self):
        """Row and column slices of the box, in the image and in the square."""
        corners = (self.top, self.left), ((self.side - self.height) // 2, (self.side - self.width) // 2)
        return [(slice(top, top + self.height), slice(left, left + self.width)) for top, left in corners]

    def cut(self, image, size, nearest=False):
        """Cut the box out, pad it to the square and resize that.

        Args:
            image (ndarray): uint8, (H, W) or (H, W, C).
            size (int): side of the result in pixels.
            nearest (bool): take the nearest pixel, for masks; otherwise pixels are averaged or interpolated.

        Returns:
            ndarray: uint8, (size, size) or (size, size, C).
        """
        box, target = self._windows()
        square = np.zeros((self.side, self.side, *image.shape[2:]), image.dtype)
        square[target] = image[box]
        if nearest:  # cv2.INTER_NEAREST would shift masks against images by up to half a pixel
            interpolation = cv2.INTER_NEAREST_EXACT
        else:  # averaging areas would give blocks where the image grows
            interpolation = cv2.INTER_AREA if self.side > size else cv2.INTER_LINEAR
        return cv2.resize(square, (size, size), interpolation=interpolation)

    def put_back(self, probabilities, height, width):
        """Bring probabilities on the cut square back to the pixels of the image, background around the box.

        Args:
            probabilities (Tensor): (K, S, S); for K > 1 class 0 is the background.
            height, width (int): of the image.

        Returns:
            Tensor: (K, height, width), of the same dtype.
        """
        box, target = self._windows()
        square = resize_bilinear(probabilities, self.side, self.side)
        original = probabilities.new_zeros(len(probabilities), height, width)
        if len(probabilities) > 1:
            original[0] = 1
        original[(slice(None), *box)] = square[(slice(None), *target)]
        return original


def resize_bilinear(probabilities, height, width):
    """Resize a tensor (K, H, W) to (K, height, width)."""
    return F.interpolate(probabilities[None], size=(height, width), mode="bilinear", align_corners=False)[0]
