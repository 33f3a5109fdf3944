import cv2
import numpy as np
import pytest

from iso_d2.data.generated.scene_drawing import draw_scene


@pytest.mark.parametrize("seed", range(6))
def test_objects_are_disjoint_without_holes_and_large_enough(seed):
    image, classes, masks = draw_scene(np.random.default_rng(seed), 64, 80)
    assert image.shape == (64, 80, 3) and image.dtype == np.uint8
    assert 1 <= len(classes) == len(masks) <= 4 and set(classes) <= {0, 1, 2}
    assert np.sum(masks, axis=0).max() == 1
    for mask in masks:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED)
        assert (filled == mask).all(), "a hole"
        assert min(np.ptp(np.argwhere(mask), axis=0)) + 1 >= 6


def test_the_generator_decides_everything():
    first, again, other = (draw_scene(np.random.default_rng(seed), 64, 80)[0] for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()
