import numpy as np
import pytest

from iso_d2.data.lgg.preprocessing import Preprocessing
from iso_d2.placement import Placement


def head(top=30, left=50, height=120, width=90, side=256, level=90):
    """A black image with a rectangle."""
    image = np.zeros((side, side, 3), np.uint8)
    image[top : top + height, left : left + width] = level
    return image


BOX = Placement(top=30, left=50, height=120, width=90)
find_head = Preprocessing().find_head


def test_the_box_is_the_head():
    assert find_head(head()) == BOX


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_channel_is_enough(channel):
    """Slices at the end of a volume lack one or two sequences."""
    image = head()
    image[..., [other for other in range(3) if other != channel]] = 0
    assert find_head(image) == BOX


def test_noise_haze_specks_and_markers_do_not_widen_the_box():
    image = head().astype(int)
    rng = np.random.default_rng(0)
    image += rng.integers(0, 14, image.shape)
    image[rng.random(image.shape[:2]) < 0.005] = 255
    image[200:212, 200:212] = 255  # 144 pixels, 0.2 %
    assert find_head(np.clip(image, 0, 255).astype(np.uint8)) == BOX


def test_a_bright_background_of_one_channel_is_not_head():
    image = head()
    image[..., 0] = np.where(image[..., 0] > 0, 150, 100)
    assert find_head(image) == BOX


def test_a_head_that_takes_up_half_of_the_frame():
    assert find_head(head(top=0, left=0, height=200, width=256)) == Placement(0, 0, 200, 256)


def test_large_pieces_count_all():
    image = head(top=30, left=50, height=40, width=90)
    image[100:140, 60:160] = 80
    assert find_head(image) == Placement(30, 50, 110, 110)


@pytest.mark.parametrize("level", [0, 15])
def test_black_and_nearly_black_slices_stay_whole(level):
    image = np.full((200, 240, 3), level, np.uint8)
    image[90:100, 90:100] = 200
    assert find_head(image) == Placement(0, 0, 200, 240)


def test_crop_pad_and_resize():
    """16 x 8 pixels of head become a square of 16 with 4 columns of zeros on each side, enlarged twice."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:26, 14:22] = (50, 100, 200)
    result, placement = Preprocessing(size=32)(image)
    assert placement == Placement(top=10, left=14, height=16, width=8)
    assert result.shape == (3, 32, 32) and result.dtype == np.uint8 and result.flags.c_contiguous
    assert not result[..., :7].any() and not result[..., 25:].any()
    assert (result[..., 9:23] == np.array([50, 100, 200])[:, None, None]).all()


def test_the_mask_has_no_part_in_the_crop():
    """What lies outside the head's box is lost, as it would be where no mask is known."""
    image = head()
    _, placement = Preprocessing()(image)
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[200:220, 200:220] = 255
    assert not placement.cut(mask, 224, nearest=True).any()
