import numpy as np
import pytest
import torch
from PIL import Image

from iso_d2.evaluation.masks import PredictedMasks, read_mask


def test_masks_and_dice(tmp_path):
    """4 of 6 predicted pixels are right, of 8 true ones: 2 * 4 / (6 + 8), over two slices."""
    truths = np.zeros((2, 4, 4), np.uint8)
    truths[0, :2] = 255
    predicted = torch.zeros(2, 1, 4, 4)
    predicted[0, 0, 1], predicted[1, 0, 0, :2] = 0.6, 0.6
    masks = PredictedMasks(tmp_path, threshold=0.6)
    for number, truth in enumerate(truths):
        file = tmp_path / f"x{number}.png"
        Image.fromarray(np.full((4, 4, 3), 50, np.uint8)).save(file)
        Image.fromarray(truth).save(tmp_path / f"x{number}_mask.png")
        masks.add(file, predicted[number])
    assert masks.volume_dice() == {tmp_path: pytest.approx(100 * 8 / 14)}
    written = np.asarray(Image.open(tmp_path / "0000_x0_mask.png"))
    assert written.tolist() == [[0] * 4, [255] * 4, [0] * 4, [0] * 4]
    classes = torch.zeros(3, 4, 4)
    classes[2, 0] = 1
    Image.fromarray(np.full((4, 4, 3), 50, np.uint8)).save(tmp_path / "y.png")
    masks.add(tmp_path / "y.png", classes)
    assert np.asarray(Image.open(tmp_path / "0002_y_mask.png")).tolist() == [[2] * 4] + [[0] * 4] * 3
    assert masks.volume_dice() == {}  # one without a true mask


def test_mask_of_another_size(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "x.png")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "x_mask.png")
    with pytest.raises(ValueError, match=r"x_mask\.png is of size \(3, 4\), its image of \(4, 4\)"):
        PredictedMasks(tmp_path, 0.5).add(tmp_path / "x.png", torch.zeros(1, 4, 4))


def test_masks_of_other_values(tmp_path):
    path = str(tmp_path / "mask.png")
    Image.fromarray(np.array([[0, 255], [1, 255]], np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"mask.png holds the value 1; only 0 .* and 255"):
        read_mask(path)
