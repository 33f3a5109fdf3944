import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from iso_d2.data.coco.chips import LEAST_SIDE, SIDE, SIDES, SMALLEST, chips_of


def record(*boxes, height=300, width=400, image_id=7, crowds=()):
    annotations = [
        {"bbox": list(box), "category_id": i % 3, "iscrowd": int(i in crowds)} for i, box in enumerate(boxes)
    ]
    return {"image_id": image_id, "height": height, "width": width, "annotations": annotations}


def in_image(chip, box):
    """A box of a chip, in pixels of the image: (left, top, right, bottom)."""
    left, top, side = chip["box"]
    x, y, width, height = (value * side / SIDE for value in box)
    return [left + x, top + y, left + x + width, top + y + height]


@pytest.mark.parametrize("image_id", range(12))
def test_the_object_is_whole_and_from_half_to_three_quarters_of_the_side(image_id):
    (chip,) = chips_of(record((110.5, 80.0, 60.0, 96.0), image_id=image_id))
    left, top, side = chip["box"]
    assert 0 <= left <= 400 - side and 0 <= top <= 300 - side
    assert SIDES[0] * 96 - 1 <= side <= SIDES[1] * 96 + 1
    (found,) = chip["annotations"]
    # edges of whole pixels can cut half a pixel off
    np.testing.assert_allclose(in_image(chip, found["bbox"]), [110.5, 80, 170.5, 176], atol=0.51)
    assert (found["category_id"], found["iscrowd"]) == (1, 0)
    assert found["area"] == pytest.approx(60 * 96 * (SIDE / side) ** 2, rel=0.02)


def test_chips_are_always_the_same_but_differ_between_images():
    boxes = [(20.0, 30.0, 80.0, 60.0), (200.0, 100.0, 50.0, 120.0)]
    assert chips_of(record(*boxes)) == chips_of(record(*boxes)) != chips_of(record(*boxes, image_id=8))
    assert len(chips_of(record(*boxes))) == 2
    (one,) = chips_of(record(*boxes), largest=True)
    left, top, side = one["box"]
    assert left <= 200 and left + side >= 250 and top <= 100 and top + side >= 220


def test_crowds_small_and_huge_objects_have_no_chip():
    small, huge, crowd = (0, 0, SMALLEST - 1, 20), (0, 0, 100, 300), (10, 10, 100, 100)
    assert chips_of(record(small, huge, crowd, crowds=[2])) == []


def test_what_is_hardly_seen_or_small_is_a_crowd_and_what_is_outside_is_not_there(monkeypatch):
    # the whole image is the chip of the first: 100 high, its side
    monkeypatch.setattr("iso_d2.data.coco.chips.SIDES", (2, 2))
    tall = (10.0, 5.0, 30.0, 90.0)
    small = (60.0, 40.0, 100 * LEAST_SIDE - 1, 5.0)
    large_enough = (60.0, 60.0, 100 * LEAST_SIDE + 1, 5.0)
    half_outside = (90.0, 10.0, 40.0, 30.0)
    mostly_inside = (70.0, 10.0, 40.0, 30.0)
    outside = (100.0, 0.0, 20.0, 20.0)
    boxes = [tall, small, large_enough, half_outside, mostly_inside, outside]
    (chip,) = chips_of(record(*boxes, height=100, width=100), largest=True)
    assert chip["box"] == (0, 0, 100)
    assert [one["iscrowd"] for one in chip["annotations"]] == [0, 1, 0, 1, 0]
    assert chip["annotations"][4]["bbox"] == pytest.approx([112, 16, 48, 48])  # 30 of its 40 pixels are seen


@pytest.fixture
def write_set(tmp_path, monkeypatch):
    """A function that writes coco_pbc_test, one image of 300x200 pixels; the annotations say a width."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    image = np.zeros((200, 300, 3), np.uint8)
    image[50:150, 100:160] = (0, 0, 255)
    cv2.imwrite(str(folder / "val2017" / "a.png"), image)

    def write(width):
        box = {"bbox": [100, 50, 60, 100], "area": 6000, "iscrowd": 0}
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": 200, "width": width}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 3, **box}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(("person", "bicycle", "car"), 1)],
        }
        file = folder / "annotations" / "instances_person_bicycle_car_test55.json"
        file.write_text(json.dumps(content))

    return write


def test_the_registered_set_is_cut_from_the_images(write_set):
    write_set(width=300)
    (chip,) = DatasetCatalog.get("coco_pbc_chips_test")
    assert (chip["height"], chip["width"], len(chip["annotations"])) == (SIDE, SIDE, 1)
    pixels = cv2.imread(chip["file_name"])
    x, y, width, height = chip["annotations"][0]["bbox"]
    red = np.argwhere((pixels[..., 2] > 128) & (pixels[..., 1] < 128))
    np.testing.assert_allclose(red.min(0), [y, x], atol=2)
    np.testing.assert_allclose(red.max(0) + 1, [y + height, x + width], atol=2)
    assert chip["annotations"][0]["category_id"] == 2


def test_an_image_of_another_size_than_its_annotations_is_named(write_set):
    write_set(width=290)
    with pytest.raises(ValueError, match=r"a\.png has 300x200 pixels, and 290x200 by the annotations"):
        DatasetCatalog.get("coco_pbc_chips_test")
