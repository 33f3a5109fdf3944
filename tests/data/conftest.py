import numpy as np
import pytest
from mapping import annotation, rectangle
from PIL import Image


@pytest.fixture
def record(tmp_path):
    """An image of 100x50 pixels with one red rectangle: x 10 to 30, y 5 to 15."""
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[5:15, 10:30, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    labels = np.zeros((50, 100), np.uint8)
    labels[5:15, 10:30] = 2
    Image.fromarray(labels).save(tmp_path / "labels.png")
    box = [10, 5, 20, 10]
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "image_id": 4,
        "height": 50,
        "width": 100,
        "annotations": [annotation(box, category=2, segmentation=rectangle(*box))],
    }
