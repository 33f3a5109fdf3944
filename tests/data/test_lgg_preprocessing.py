import numpy as np
import pytest

from iso_d2.data.lgg_preprocessing import find_head, preprocess_image, preprocess_mask


def head(top=30, left=50, height=120, width=90, side=256, level=90):
    """A black image with a rectangle."""
    image = np.zeros((side, side, 3), np.uint8)
    image[top : top + height, left : left + width] = level
    return image


BOX = (30, 50, 120, 90)


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
    assert find_head(head(top=0, left=0, height=200, width=256)) == (0, 0, 200, 256)


def test_large_pieces_count_all():
    image = head(top=30, left=50, height=40, width=90)
    image[100:140, 60:160] = 80
    assert find_head(image) == (30, 50, 110, 110)


@pytest.mark.parametrize("level", [0, 15])
def test_black_and_nearly_black_slices_stay_whole(level):
    image = np.full((200, 240, 3), level, np.uint8)
    image[90:100, 90:100] = 200
    assert find_head(image) == (0, 0, 200, 240)


def test_crop_pad_and_resize_by_hand():
    """16 x 8 pixels of head become a square of 16 with 4 columns of zeros on each side, enlarged twice."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:26, 14:22] = (50, 100, 200)
    result, placement = preprocess_image(image, size=32)
    expected = {"top": 10, "left": 14, "height": 16, "width": 8, "pad_top": 0, "pad_left": 4, "side": 16}
    assert placement == expected
    assert result.shape == (3, 32, 32) and result.dtype == np.uint8
    assert not result[..., :7].any() and not result[..., 25:].any()
    assert (result[..., 9:23] == np.array([50, 100, 200])[:, None, None]).all()


def test_odd_padding_stays_within_the_square():
    image = head(height=121, width=90)
    _, placement = preprocess_image(image, size=64)
    assert (placement["side"], placement["pad_top"], placement["pad_left"]) == (121, 0, 15)


def test_shrinking_averages_areas():
    """Stripes one pixel wide: of 2 x 2 pixels two are bright, whichever; one alone would give 100 or 200."""
    image = np.zeros((130, 130, 3), np.uint8)
    image[1:129, 1:129] = 100
    image[1:129, 1:129:2] = 200
    result, placement = preprocess_image(image, size=64)
    assert placement["side"] == 128
    assert np.unique(result).tolist() == [150]


def test_the_mask_goes_where_the_image_goes():
    """A tumour that is bright in the image covers the same pixels of both results, whatever the scale."""
    for size in (40, 64, 100, 224):
        image = head(level=60)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[60:90, 70:100] = 255
        image[mask > 0] = 240
        result, placement = preprocess_image(image, size)
        moved = preprocess_mask(mask, placement, size)
        assert moved.shape == (size, size) and set(np.unique(moved)) == {0, 255}
        bright = result[1] > 150
        assert (bright != (moved > 0)).mean() < 2.5 / size
        # No shift: rows and columns on both sides of the tumour stay in proportion.
        for axis in (0, 1):
            inside = np.flatnonzero(moved.any(axis=axis))
            centre = (inside[0] + inside[-1] + 1) / 2 / size * 120
            # centre in the square of 120: columns 35 + 15 of padding, rows 45
            assert centre == pytest.approx([50, 45][axis], abs=0.5 * 120 / size + 1e-9)


def test_the_mask_has_no_part_in_the_crop():
    """What lies outside the head's box is lost, as it would be where no mask is known."""
    image = head()
    _, placement = preprocess_image(image)
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[200:220, 200:220] = 255
    assert not preprocess_mask(mask, placement).any()
