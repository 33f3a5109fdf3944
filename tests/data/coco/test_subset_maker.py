"""Choosing a subset of COCO, and making it on disk."""

import copy
import json
import random

import pytest
from image_server import jpeg, serving

from iso_d2.data.coco.subset_maker import make_coco_subset, select_subset

CLASSES = ["person", "bicycle", "car"]
POLYGON = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]
RUNS = {"counts": [0, 1200], "size": [30, 40]}
# `printf SEED:ID | sha256sum` of 3, 5, 8, 13, 21, 34 in rising order
RANKED = {0: [21, 3, 34, 8, 5, 13], 1: [8, 5, 21, 3, 34, 13]}


def annotation(number, image_id, category_id, iscrowd=0):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [1.0, 1.0, 8.0, 8.0],
        "area": 32.0,
        "iscrowd": iscrowd,
        "segmentation": RUNS if iscrowd else POLYGON,
    }


@pytest.fixture
def coco():
    """Six images with person, bicycle or car; 55 holds only a motorcycle, 89 only a crowd, 144 nothing."""
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30, "license": 1}
        for i in (3, 5, 8, 13, 21, 34, 55, 89, 144)
    ]
    names = {1: "person", 2: "bicycle", 3: "car", 4: "motorcycle"}
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "name": "Attribution License"}],
        "images": images,
        "annotations": [
            annotation(101, 3, 1),
            annotation(102, 3, 1, iscrowd=1),
            annotation(103, 3, 4),
            annotation(104, 5, 2),
            annotation(105, 8, 3),
            annotation(106, 13, 1),
            annotation(107, 21, 2),
            annotation(108, 21, 4),
            annotation(109, 34, 1),
            annotation(110, 55, 4),
            annotation(111, 89, 1, iscrowd=1),
        ],
        "categories": [{"id": i, "name": name, "supercategory": "any"} for i, name in names.items()],
    }


def ids(entries):
    return [entry["id"] for entry in entries]


@pytest.mark.parametrize("seed", RANKED)
def test_images_are_chosen_by_the_hash_of_seed_and_id(coco, seed):
    train, test = select_subset(coco, CLASSES, num_train=3, num_test=2, seed=seed)
    assert ids(test["images"]) == sorted(RANKED[seed][:2])
    assert ids(train["images"]) == sorted(RANKED[seed][2:5])


def test_the_large_test_set_comes_after_the_others_and_leaves_them_as_they_are(coco):
    train, test, large = select_subset(coco, CLASSES, num_train=2, num_test=1, seed=0, num_large=2)
    assert (train, test) == select_subset(coco, CLASSES, num_train=2, num_test=1, seed=0)
    # RANKED[0]: 21 to test, 3 and 34 to train, then 8 and 5; 13 is left
    assert ids(large["images"]) == [5, 8]
    assert ids(large["annotations"]) == [104, 105]
    assert large["categories"] == coco["categories"][:3]


def test_all_and_only_the_annotations_of_the_classes_stay(coco):
    train, test = select_subset(coco, CLASSES, num_train=4, num_test=2, seed=0)
    assert test["annotations"] == [
        annotation(101, 3, 1),
        annotation(102, 3, 1, iscrowd=1),
        annotation(107, 21, 2),
    ]
    assert ids(train["annotations"]) == [104, 105, 106, 109]
    for part in (train, test):
        assert part["categories"] == coco["categories"][:3]
        assert (part["info"], part["licenses"]) == (coco["info"], coco["licenses"])
    assert train["images"][0] == coco["images"][1]


def test_neither_the_order_of_the_file_nor_num_train_changes_the_choice(coco):
    few_train, few_test = select_subset(coco, CLASSES, num_train=2, num_test=2, seed=0)
    shuffled = copy.deepcopy(coco)
    for entries in (shuffled["images"], shuffled["annotations"], shuffled["categories"]):
        random.Random(1).shuffle(entries)
    assert select_subset(shuffled, CLASSES, num_train=2, num_test=2, seed=0) == (few_train, few_test)

    more_train, same_test = select_subset(coco, CLASSES, num_train=4, num_test=2, seed=0)
    assert same_test == few_test
    assert set(ids(few_train["images"])) < set(ids(more_train["images"]))


def test_one_class_alone(coco):
    train, test = select_subset(coco, ["motorcycle"], num_train=2, num_test=1, seed=0)
    assert sorted(ids(train["images"]) + ids(test["images"])) == [3, 21, 55]
    assert sorted(ids(train["annotations"]) + ids(test["annotations"])) == [103, 108, 110]
    assert ids(train["categories"]) == [4]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": ["person", "bike"]}, "of person, bicycle, car, motorcycle: unknown bike"),
        ({"classes": ["car", "car"]}, r"must be different ones .* got \['car', 'car'\]"),
        ({"classes": []}, r"got \[\]"),
        ({"num_train": 0}, "at least 1, got 0 and 2"),
        ({"num_test": -1}, "at least 1, got 3 and -1"),
        ({"num_large": -1}, "num_large must be at least 0, got -1"),
        (
            {"num_large": 2},
            "3 training and 2 test and 2 further test images were asked for, but the file has only 6 images",
        ),
        (
            {"num_train": 5},
            "5 training and 2 test images were asked for, but the file has only 6 images with person",
        ),
    ],
)
def test_arguments_that_do_not_fit_the_file(coco, change, message):
    arguments = {"classes": CLASSES, "num_train": 3, "num_test": 2, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        select_subset(coco, **arguments)


@pytest.fixture
def served(coco, tmp_path, monkeypatch):
    """An annotation file whose images lie on a server: its path, and the server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        for image in coco["images"]:
            server.files[image["file_name"]] = jpeg(image["id"])
            image["coco_url"] = server.url(image["file_name"])
        path = tmp_path / "instances_val2017.json"
        path.write_text(json.dumps(coco))
        yield path, server


def test_a_subset_on_disk(coco, served, tmp_path):
    annotation_file, server = served
    server.faults["3.jpg"] = ["truncate"]
    made = make_coco_subset(annotation_file, tmp_path / "root", CLASSES, num_train=2, num_test=2)
    folder = tmp_path / "root" / "coco"
    assert made == (
        folder / "annotations" / "instances_person_bicycle_car_train2.json",
        folder / "annotations" / "instances_person_bicycle_car_test2.json",
        folder / "val2017",
    )
    train, test = select_subset(coco, CLASSES, num_train=2, num_test=2, seed=0)
    assert json.loads(made[0].read_text()) == train
    assert json.loads(made[1].read_text()) == test
    # Only the needed images
    assert {path.name: path.read_bytes() for path in made[2].iterdir()} == {
        f"{i}.jpg": jpeg(i) for i in RANKED[0][:4]
    }
    assert len(list((folder / "annotations").iterdir())) == 2


def test_a_large_test_set_on_disk(coco, served, tmp_path):
    annotation_file, _ = served
    made = make_coco_subset(annotation_file, tmp_path, CLASSES, num_train=1, num_test=1, num_large=3)
    parts = select_subset(coco, CLASSES, num_train=1, num_test=1, seed=0, num_large=3)
    assert made[3].name == "instances_person_bicycle_car_testlarge.json"
    assert tuple(json.loads(made[i].read_text()) for i in (0, 1, 3)) == parts
    assert {path.name for path in made[2].iterdir()} == {f"{i}.jpg" for i in RANKED[0][:5]}


def test_failures_are_listed_and_a_second_call_continues(served, tmp_path):
    annotation_file, server = served
    lost = server.files.pop("34.jpg")
    with pytest.raises(OSError, match=r"(?s)1 of 4 images could not be had:\n  34.jpg: HTTP Error 404"):
        make_coco_subset(annotation_file, tmp_path, CLASSES, num_train=2, num_test=2)
    assert not (tmp_path / "coco" / "annotations").exists()

    server.files["34.jpg"] = lost
    server.requests.clear()
    made = make_coco_subset(annotation_file, tmp_path, CLASSES, num_train=2, num_test=2)
    assert all(path.exists() for path in made)
    assert server.requests == [("34.jpg", None)]


def test_a_class_of_two_words_and_another_image_folder(coco, served, tmp_path):
    annotation_file, _ = served
    coco["categories"][3]["name"] = "traffic light"
    for image in coco["images"]:
        (tmp_path / image["file_name"]).write_bytes(jpeg(image["id"]))
    annotation_file = annotation_file.with_name("mine.json")
    annotation_file.write_text(json.dumps(coco))
    made = make_coco_subset(
        annotation_file, tmp_path / "root", ["traffic light"], 2, 1, image_folder="photos", source=tmp_path
    )
    assert [path.name for path in made] == [
        "instances_traffic-light_train2.json",
        "instances_traffic-light_test1.json",
        "photos",
    ]


def test_a_missing_or_faulty_annotation_file(coco, tmp_path):
    def make(name, content=None, **options):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        make_coco_subset(path, tmp_path / "root", CLASSES, num_train=2, num_test=2, **options)

    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json does not exist\. Unpack COCO's"):
        make("instances_val2017.json")
    with pytest.raises(ValueError, match="not valid json"):
        make("instances_val2017.json", json.dumps(coco)[:-100])
    with pytest.raises(ValueError, match="has no images"):
        make("instances_val2017.json", "[]")
    with pytest.raises(ValueError, match=r"image folder from the name 'mine\.json'.*--image-folder val2017"):
        make("mine.json", json.dumps(coco))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        make("instances_val2017.json", json.dumps(coco), source=tmp_path / "nowhere")
    # These images have no coco_url
    with pytest.raises(ValueError, match="has coco_url None, but an http"):
        make("instances_val2017.json", json.dumps(coco))
    del coco["images"][0]["width"]
    with pytest.raises(ValueError, match=r"images\[0\] lacks width"):
        make("instances_val2017.json", json.dumps(coco))
    assert not (tmp_path / "root").exists()
