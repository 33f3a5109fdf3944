import importlib
import json
import logging
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from perfect_predictions import average_precision
from PIL import Image

from iso_d2.data.coco import subset

CATEGORIES = [{"id": i, "name": name} for i, name in enumerate(("person", "bicycle", "car"), start=1)]


def write_list(root, split, ids, boxes=None, categories=CATEGORIES):
    """Write one list of the subset; every image has one box of 30 pixels, or those of ``boxes[id]``.

    The boxes of an image are of the classes 1, 2, ... in turn; one with a fifth entry is a crowd.
    """
    annotations = [
        {"image_id": i, "category_id": c, "bbox": box[:4], "area": box[2] * box[3], "iscrowd": len(box) - 4}
        for i in ids
        for c, box in enumerate((boxes or {}).get(i, [[5, 5, 30, 30]]), start=1)
    ]
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 50, "width": 100} for i in ids],
        "annotations": [{"id": number, **a} for number, a in enumerate(annotations, start=1)],
        "categories": categories,
    }
    folder = root / "coco" / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"instances_person_bicycle_car_{split}.json").write_text(json.dumps(content))


def write_images(root, ids):
    folder = root / "coco" / "val2017"
    folder.mkdir(parents=True, exist_ok=True)
    for i in ids:
        Image.new("RGB", (100, 50)).save(folder / f"{i}.jpg")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def image_ids(name):
    return [record["image_id"] for record in DatasetCatalog.get(name)]


def test_real_counts(real_data):
    real_data("coco", "val2017")
    for name, images, boxes in (("coco_pbc_train", 120, 740), ("coco_pbc_test", 55, 431)):
        dicts = DatasetCatalog.get(name)
        if len(dicts) == 1000:
            pytest.skip("all 1,000 training images are here")
        assert (len(dicts), sum(len(record["annotations"]) for record in dicts)) == (images, boxes)
        assert MetadataCatalog.get(name).thing_classes == ["person", "bicycle", "car"]


def test_perfect_predictions_on_the_real_test_images(real_data):
    real_data("coco", "val2017")
    assert average_precision("coco_pbc_test", DatasetCatalog.get("coco_pbc_test"))["bbox"] > 99.9


def test_eight_real_images_are_evaluated_alone(real_data):
    real_data("coco", "val2017")
    dicts = DatasetCatalog.get("coco_pbc_train8")
    # Counted from the list by itself: 16 persons, 4 bicycles and 7 cars.
    ids = [15597, 27768, 68093, 72852, 76547, 151962, 157365, 210299]
    assert [record["image_id"] for record in dicts] == ids
    classes = [a["category_id"] for record in dicts for a in record["annotations"]]
    assert [classes.count(c) for c in range(3)] == [16, 4, 7]
    assert average_precision("coco_pbc_train8", dicts)["bbox"] == pytest.approx(100)


def test_training_takes_all_images_when_all_are_there(root, caplog):
    write_list(root, "train1000", range(10))
    write_list(root, "train120", range(4))
    write_images(root, range(10))
    with caplog.at_level(logging.INFO):
        assert image_ids("coco_pbc_train") == list(range(10))
    assert "the 10 images of train1000, because all its images are there" in caplog.text


def test_training_takes_the_short_list_else(root, caplog):
    write_list(root, "train1000", range(10))
    write_list(root, "train120", range(4))
    write_images(root, range(4))
    with caplog.at_level(logging.INFO):
        assert image_ids("coco_pbc_train") == list(range(4))
    assert (
        "the 4 images of train120, because 6 images of instances_person_bicycle_car_train1000.json"
        in caplog.text
    )
    assert MetadataCatalog.get("coco_pbc_train").json_file.endswith("train120.json")


def test_eight_have_two_classes_and_neither_crowds_nor_small_boxes(root):
    good = [[5, 5, 30, 30], [50, 5, 30, 30]]
    boxes = {i: good for i in range(14)}
    boxes |= {0: good[:1], 1: [*good, [5, 5, 30, 19]], 3: [*good, [5, 5, 30, 30, "crowd"]], 6: []}
    write_list(root, "train120", range(14), boxes)
    write_images(root, range(14))
    assert image_ids("coco_pbc_train8") == [2, 4, 5, 7, 8, 9, 10, 11]
    annotations = root / "coco" / "annotations"
    (annotations / "instances_person_bicycle_car_train120.json").rename(
        annotations / "instances_person_bicycle_car_train1000.json"
    )
    assert image_ids("coco_pbc_train8") == [2, 4, 5, 7, 8, 9, 10, 11]
    evaluated = json.loads(Path(MetadataCatalog.get("coco_pbc_train8").json_file).read_text())
    assert len(evaluated["images"]) == 8


def test_the_large_test_set_holds_no_training_image(root):
    write_list(root, "testlarge", range(3, 7))
    write_images(root, range(7))
    assert image_ids("coco_pbc_test_large") == [3, 4, 5, 6]
    write_list(root, "train1000", range(3))
    assert image_ids("coco_pbc_test_large") == [3, 4, 5, 6]
    write_list(root, "train1000", range(5))
    with pytest.raises(
        ValueError, match=r"2 images of .*testlarge\.json are training images in .*, such as 3\..*--num-large"
    ):
        DatasetCatalog.get("coco_pbc_test_large")


@pytest.mark.parametrize(
    "name", ["coco_pbc_train", "coco_pbc_train8", "coco_pbc_test", "coco_pbc_test_large"]
)
def test_missing_set_says_where_it_looked_and_how_to_get_it(root, name):
    with pytest.raises(FileNotFoundError) as error:
        DatasetCatalog.get(name)
    message = str(error.value)
    assert str(root / "coco" / "annotations" / "instances_person_bicycle_car_") in message
    for words in (
        "from DETECTRON2_DATASETS",
        "DETECTRON2_DATASETS=FOLDER",
        "python tools/make_coco_subset.py",
    ):
        assert words in message
    assert ("--num-large N" in message) == (name == "coco_pbc_test_large")


def test_unset_variable_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"datasets \(by default, without DETECTRON2_DATASETS\)"):
        DatasetCatalog.get("coco_pbc_test")


def test_missing_images_say_how_to_get_them(root):
    write_list(root, "test55", range(5))
    write_images(root, range(2))
    with pytest.raises(
        FileNotFoundError, match=r"3 of the 5 images .*: 2.jpg, 3.jpg, 4.jpg.*make_coco_subset"
    ):
        DatasetCatalog.get("coco_pbc_test")


def test_wrong_categories(root):
    write_list(root, "test55", range(2), categories=[{"id": 1, "name": "dog"}])
    write_images(root, range(2))
    with pytest.raises(
        ValueError, match=r"\['dog'\], but coco_pbc_test is a set of \['person', 'bicycle', 'car'\]"
    ):
        DatasetCatalog.get("coco_pbc_test")


def test_importing_again_is_harmless():
    importlib.reload(subset)
    assert "coco_pbc_train" in DatasetCatalog
    assert MetadataCatalog.get("coco_pbc_train").evaluator_type == "coco"
