import numpy as np
import pytest
import torch

from iso_d2.placement import Placement


def test_cut_by_hand():
    """16 x 8 pixels become a square of 16 with 4 columns of zeros on each side, enlarged twice."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:26, 14:22] = (50, 100, 200)
    placement = Placement(top=10, left=14, height=16, width=8)
    assert placement.side == 16
    result = placement.cut(image, 32)
    assert result.shape == (32, 32, 3) and result.dtype == np.uint8
    assert not result[:, :7].any() and not result[:, 25:].any()
    assert (result[:, 9:23] == (50, 100, 200)).all()


def test_odd_padding_stays_within_the_square():
    mask = np.full((130, 100), 255, np.uint8)
    result = Placement(top=3, left=2, height=121, width=90).cut(mask, 121, nearest=True)
    # 31 columns of padding: 15 to the left, 16 to the right
    columns = np.flatnonzero(result.any(axis=0))
    assert (columns[0], columns[-1]) == (15, 15 + 89) and result[:, columns].all()


def test_shrinking_averages_areas():
    """Stripes one pixel wide: of 2 x 2 pixels two are bright, whichever; one alone would give 100 or 200."""
    image = np.full((128, 128), 100, np.uint8)
    image[:, ::2] = 200
    assert np.unique(Placement(0, 0, 128, 128).cut(image, 64)).tolist() == [150]


@pytest.mark.parametrize("size", [40, 64, 100, 224])
def test_the_mask_goes_where_the_image_goes(size):
    """A tumour that is bright in the image covers the same pixels of both results, whatever the scale."""
    image, mask = np.full((256, 256), 60, np.uint8), np.zeros((256, 256), np.uint8)
    mask[60:90, 70:100] = 255
    image[mask > 0] = 240
    placement = Placement(top=30, left=50, height=120, width=90)
    moved = placement.cut(mask, size, nearest=True)
    assert moved.shape == (size, size) and set(np.unique(moved)) == {0, 255}
    assert ((placement.cut(image, size) > 150) != (moved > 0)).mean() < 2.5 / size
    # No shift: rows and columns on both sides of the tumour stay in proportion.
    for axis in (0, 1):
        inside = np.flatnonzero(moved.any(axis=axis))
        centre = (inside[0] + inside[-1] + 1) / 2 / size * 120
        # centre in the square of 120: columns 35 + 15 of padding, rows 45
        assert centre == pytest.approx([50, 45][axis], abs=0.5 * 120 / size + 1e-9)


@pytest.mark.parametrize("box", [(0, 1, 3, 2), (1, 0, 1, 3)])
def test_what_was_cut_comes_back(box):
    """At the square's own size nothing is interpolated."""
    top, left, height, width = box
    image = np.random.default_rng(0).integers(1, 256, (4, 3), np.uint8)
    placement = Placement(*box)
    square = torch.from_numpy(placement.cut(image, 3, nearest=True))
    expected = torch.zeros(1, 4, 3)
    inside = slice(top, top + height), slice(left, left + width)
    expected[0][inside] = torch.from_numpy(image)[inside].float()
    assert torch.equal(placement.put_back(square[None].float(), 4, 3), expected)


def test_outside_of_the_crop_is_background():
    probabilities = torch.rand(3, 3, 3)
    out = Placement(top=0, left=1, height=3, width=2).put_back(probabilities, 4, 3)
    expected = torch.zeros(3, 4, 3)
    expected[0] = 1
    # the padding of one pixel is (3 - 2) // 2 = 0 to the left
    expected[:, :3, 1:3] = probabilities[:, :, :2]
    torch.testing.assert_close(out, expected)
