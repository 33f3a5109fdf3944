import copy
import json
import logging
import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from perfect_predictions import average_precision
from PIL import Image

from iso_d2.data import load_coco, register_coco_json
from iso_d2.data.coco.annotations import check_images_exist, missing_images, read_coco_json

GOOD = {
    "images": [{"id": 7, "file_name": "seven.jpg", "height": 50, "width": 100}],
    "annotations": [
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [10.0, 5.0, 20.0, 10.0], "area": 200.0},
    ],
    "categories": [{"id": 1, "name": "person"}],
}


def write(folder, **changes):
    """Write GOOD, with some of its lists replaced."""
    path = folder / "set.json"
    path.write_text(json.dumps({**copy.deepcopy(GOOD), **changes}))
    return path


def with_box(folder, box):
    return write(folder, annotations=[{**GOOD["annotations"][0], "bbox": box}])


def test_good_file_is_returned_unchanged(tmp_path):
    assert read_coco_json(write(tmp_path)) == GOOD


def test_missing_file_says_where_it_looked_and_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.json does not exist. Make it so") as error:
        read_coco_json(tmp_path / "nothing.json", "Make it so")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ['{"images": [{"id"', "", "\x00\x01", "[" * 100_000])
def test_truncated_file(tmp_path, text):
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"set.json is not valid json .* fetch or make it again"):
        read_coco_json(path)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("images", "id", [7], r"images\[0\] has id \[7\]: give an integer"),
        ("images", "file_name", None, r"images\[0\] has file_name None: give a file of the image folder"),
        ("images", "file_name", "../../etc/passwd", r"has file_name '\.\./\.\./etc/passwd': give a file of"),
        ("images", "file_name", "/etc/passwd", r"has file_name '/etc/passwd': give a file of"),
        (
            "annotations",
            "segmentation",
            {"size": [10**6] * 2, "counts": "a"},
            r"RLE of the image's size \[50, 100\]",
        ),
        (
            "annotations",
            "segmentation",
            [[math.nan] * 6],
            "its segmentation must be polygons of finite numbers",
        ),
        ("annotations", "category_id", {}, r"annotations\[0\] has category_id {}: give an integer"),
        ("annotations", "area", math.nan, r"annotations\[0\] has area nan: give a finite number"),
        ("annotations", "area", "big", r"annotations\[0\] has area 'big'"),
        ("annotations", "iscrowd", "0", r"annotation 3 has iscrowd '0': give 0 or 1"),
    ],
)
def test_wrong_type(tmp_path, section, key, value, message):
    with pytest.raises(ValueError, match=message):
        read_coco_json(write(tmp_path, **{section: [{**GOOD[section][0], key: value}]}))


def test_ids_of_two_kinds(tmp_path):
    one = GOOD["categories"][0]
    with pytest.raises(ValueError, match="some ids of the categories are texts, others numbers"):
        read_coco_json(write(tmp_path, categories=[one, {**one, "id": "b"}]))


def test_a_json_list_is_no_coco_file(tmp_path):
    path = tmp_path / "set.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"has no images. A COCO instances file is an object"):
        read_coco_json(path)


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, [], {}])
def test_section_that_is_missing_or_empty(tmp_path, section, value):
    with pytest.raises(ValueError, match=f"set.json has no {section}"):
        read_coco_json(write(tmp_path, **{section: value}))


@pytest.mark.parametrize(
    ("section", "field"),
    [(section, field) for section, entries in GOOD.items() for field in entries[0]],
)
def test_entry_without_a_field(tmp_path, section, field):
    entry = {key: value for key, value in GOOD[section][0].items() if key != field}
    with pytest.raises(ValueError, match=rf"set.json: {section}\[1\] lacks {field}. Each entry needs"):
        read_coco_json(write(tmp_path, **{section: [{**GOOD[section][0], "id": 99}, entry]}))


def test_entry_that_is_no_object(tmp_path):
    with pytest.raises(ValueError, match=r"images\[0\] lacks file_name, height, id, width"):
        read_coco_json(write(tmp_path, images=["seven.jpg"]))


@pytest.mark.parametrize("section", GOOD)
def test_two_entries_with_one_id(tmp_path, section):
    with pytest.raises(ValueError, match=f"two of the {section} have the same id"):
        read_coco_json(write(tmp_path, **{section: GOOD[section] * 2}))


@pytest.mark.parametrize(("key", "where"), [("image_id", "images"), ("category_id", "categories")])
def test_annotation_of_something_unknown(tmp_path, key, where):
    annotation = {**GOOD["annotations"][0], key: 12}
    with pytest.raises(ValueError, match=f"annotation 3 has {key} 12, which no entry of {where} has"):
        read_coco_json(write(tmp_path, annotations=[annotation]))


@pytest.mark.parametrize("height", [0, -3, "50", None, math.nan])
def test_image_without_a_real_size(tmp_path, height):
    with pytest.raises(ValueError, match=r"images\[0\] has height .*: give pixels"):
        read_coco_json(write(tmp_path, images=[{**GOOD["images"][0], "height": height}]))


@pytest.mark.parametrize(
    "box", [[1, 2, 3], None, "1234", ["a", 1, 2, 3], [math.nan, 0, 5, 5], [0, 0, math.inf, 5]]
)
def test_box_that_is_not_four_finite_numbers(tmp_path, box):
    with pytest.raises(ValueError, match=r"annotation 3 in seven.jpg: bbox .* four finite numbers"):
        read_coco_json(with_box(tmp_path, box))


def test_box_of_negative_size(tmp_path):
    with pytest.raises(ValueError, match=r"annotation 3 in seven.jpg: bbox .* must not be negative"):
        read_coco_json(with_box(tmp_path, [10, 10, -5, 5]))


@pytest.mark.parametrize(
    "box",
    [
        [200, 10, 5, 5],  # right of the image, which is 100 wide and 50 high
        [100.5, 10, 1, 5],  # right of it, though by less than the tolerance
        [-1.5, 10, 1, 5],
        [10, 60, 5, 5],
        [60, 20, 90, 40],  # XYXY by mistake
        [-3, 10, 20, 5],
        [10, 5, 20, 48],
    ],
)
def test_box_outside_its_image(tmp_path, box):
    with pytest.raises(
        ValueError, match=r"annotation 3 in seven.jpg: bbox .* reaches out of its 100x50 image"
    ):
        read_coco_json(with_box(tmp_path, box))


@pytest.mark.parametrize("box", [[0, 0, 100.01, 50], [-1, -1, 102, 52], [99, 49, 1.5, 1.5], [100, 20, 0, 4]])
def test_box_that_sticks_out_by_rounding_or_has_no_area_is_no_fault(tmp_path, box):
    assert read_coco_json(with_box(tmp_path, box))["annotations"][0]["bbox"] == box


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    data = {"images": [{"file_name": f"{i}.jpg"} for i in range(6)]}
    (tmp_path / "2.jpg").write_text("")
    assert missing_images(data, tmp_path) == ["0.jpg", "1.jpg", "3.jpg", "4.jpg", "5.jpg"]
    with pytest.raises(
        FileNotFoundError,
        match=r"5 of the 6 images of s.json are not in .*: 0.jpg, 1.jpg, 3.jpg and others. Do it",
    ):
        check_images_exist(data, "s.json", tmp_path, "Do it")


def test_images_in_subfolders_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_text("")
    check_images_exist({"images": [{"file_name": "a/1.jpg"}]}, "s.json", tmp_path)


def test_missing_image_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image folder .*none of s.json does not exist. Do it"):
        check_images_exist({"images": []}, "s.json", tmp_path / "none", "Do it")


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
