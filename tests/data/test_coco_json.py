import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from perfect_predictions import average_precision
from PIL import Image

from iso_d2.data import load_coco, register_coco_json

NAME = "coco_json_of_a_user"


@pytest.fixture
def own_set(tmp_path):
    """Two images as exporters often write them: ids from 0, category ids with gaps, no iscrowd, no info."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (100, 50)).save(tmp_path / name)
    content = {
        "images": [
            {"id": i, "file_name": n, "height": 50, "width": 100} for i, n in enumerate(("a.png", "b.png"))
        ],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 5, "bbox": [10, 5, 20, 10], "area": 200},
            {"id": 1, "image_id": 0, "category_id": 2, "bbox": [40, 5, 40, 40], "area": 1600},
            {"id": 2, "image_id": 1, "category_id": 5, "bbox": [0, 0, 30, 30], "area": 900},
            {"id": 3, "image_id": 1, "category_id": 5, "bbox": [7, 7, 0, 12], "area": 0, "iscrowd": 0},
        ],
        "categories": [{"id": 5, "name": "yacht"}, {"id": 2, "name": "buoy"}],
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    yield path
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def test_own_set_is_read_with_its_classes(own_set):
    register_coco_json(NAME, own_set, own_set.parent)
    first, second = DatasetCatalog.get(NAME)
    assert first["file_name"] == str(own_set.parent / "a.png")
    assert [(a["category_id"], a["bbox"]) for a in first["annotations"]] == [
        (1, [10, 5, 20, 10]),
        (0, [40, 5, 40, 40]),
    ]
    assert MetadataCatalog.get(NAME).thing_classes == ["buoy", "yacht"]
    assert len(second["annotations"]) == 1


def test_boxes_without_area_are_counted_in_the_log(own_set, caplog):
    with caplog.at_level(logging.WARNING):
        load_coco(NAME, own_set, own_set.parent)
    assert "dropped 1 annotations whose box has no area" in caplog.text


def test_own_set_is_evaluated_although_ids_start_at_0_and_iscrowd_is_missing(own_set):
    register_coco_json(NAME, own_set, own_set.parent)
    assert MetadataCatalog.get(NAME).evaluator_type == "coco"
    # The box without area stays in the evaluation's file, as in Detectron2, and nobody can find it.
    content = json.loads(own_set.read_text())
    content["annotations"].pop()
    own_set.write_text(json.dumps(content))
    dicts = DatasetCatalog.get(NAME)
    assert average_precision(NAME, dicts)["bbox"] == pytest.approx(100)


def test_a_complete_file_is_evaluated_as_it_is(own_set):
    content = json.loads(own_set.read_text())
    for annotation in content["annotations"]:
        annotation.update(id=annotation["id"] + 1, iscrowd=0)
    own_set.write_text(json.dumps({**content, "info": {}}))
    load_coco(NAME, own_set, own_set.parent)
    assert MetadataCatalog.get(NAME).json_file == str(own_set)


def test_evaluator_may_be_built_before_the_set_is_loaded(own_set, tmp_path):
    register_coco_json(NAME, own_set, own_set.parent)
    dicts = load_coco("another_name", own_set, own_set.parent)
    assert average_precision(NAME, dicts, output_dir=str(tmp_path / "out"))["bbox"] > 0


def test_registering_again_replaces(own_set, tmp_path):
    register_coco_json(NAME, tmp_path / "none.json", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=f"none.json does not exist. The data set '{NAME}' was registered"
    ):
        DatasetCatalog.get(NAME)
    register_coco_json(NAME, own_set, own_set.parent)
    assert len(DatasetCatalog.get(NAME)) == 2


def test_missing_image_is_named_before_any_training(own_set):
    (own_set.parent / "b.png").unlink()
    register_coco_json(NAME, own_set, own_set.parent)
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images of .*own.json are not in .*: b.png"):
        DatasetCatalog.get(NAME)


def test_other_classes_than_the_metadata_name(own_set):
    MetadataCatalog.get(NAME).thing_classes = ["person"]
    with pytest.raises(ValueError, match=r"categories \['buoy', 'yacht'\], but .* is a set of \['person'\]"):
        load_coco(NAME, own_set, own_set.parent)
