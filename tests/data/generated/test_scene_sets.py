import hashlib
import json
import multiprocessing

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from perfect_predictions import average_precision, decode
from PIL import Image

from iso_d2.data.generated import scene_sets


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Thirty scenes: the folder and the content of its annotation file."""
    folder = tmp_path_factory.mktemp("shapes")
    scene_sets.make_shapes(folder, num_images=30, seed=5)
    return folder, json.loads((folder / "annotations.json").read_text())


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_files(drawn, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    for folder, seed in ((again, 5), (other, 6)):
        folder.mkdir()
        scene_sets.make_shapes(folder, num_images=3, seed=seed)
    first, second = digests(drawn[0]), digests(again)
    del second["annotations.json"]
    assert len(second) == 9
    assert {name: first[name] for name in second} == second
    assert all(digests(other)[name] != second[name] for name in second)


def test_polygons_boxes_and_label_images_agree(drawn):
    folder, content = drawn
    labels = {
        image["id"]: np.array(Image.open(folder / "sem_seg" / f"{image['id']:06d}.png"))
        for image in content["images"]
    }
    covered = {key: np.zeros_like(value, dtype=int) for key, value in labels.items()}
    for annotation in content["annotations"]:
        mask = decode(annotation["segmentation"], 128, 160)
        assert mask.sum() == annotation["area"]
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in annotation["segmentation"]])
        assert np.abs(points.min(axis=0) + points.max(axis=0) - (2 * x + width, 2 * y + height)).max() == 0
        assert (x, x + width - 1) == (columns.min(), columns.max())
        assert (y, y + height - 1) == (rows.min(), rows.max())
        assert (labels[annotation["image_id"]][mask] == annotation["category_id"]).all()
        covered[annotation["image_id"]] += mask
    for key, value in labels.items():
        assert ((covered[key] == 1) == (value > 0)).all(), (
            "objects overlap, or a labelled pixel has no object"
        )


def test_scenes_are_varied(drawn):
    _, content = drawn
    categories = [annotation["category_id"] for annotation in content["annotations"]]
    assert min(categories.count(category) for category in (1, 2, 3)) >= 10
    heights = [
        annotation["bbox"][3] for annotation in content["annotations"] if annotation["category_id"] == 1
    ]
    assert max(heights) > 2 * min(heights)
    per_image = [sum(a["image_id"] == i for a in content["annotations"]) for i in range(30)]
    assert min(per_image) >= 1
    assert max(per_image) >= 4
    boxes = np.array([annotation["bbox"] for annotation in content["annotations"]])
    assert boxes[:, 2:].min() >= 6


def test_objects_differ_from_the_background_around_them(drawn):
    folder, content = drawn
    differences = []
    for annotation in content["annotations"]:
        image = np.array(Image.open(folder / "images" / f"{annotation['image_id']:06d}.jpg")).astype(float)
        labels = np.array(Image.open(folder / "sem_seg" / f"{annotation['image_id']:06d}.png"))
        mask = decode(annotation["segmentation"], 128, 160)
        differences.append(np.abs(image[mask].mean(axis=0) - image[labels == 0].mean(axis=0)).max())
    assert np.median(differences) > 20


def test_registered_sets(monkeypatch):
    dicts = DatasetCatalog.get("shapes_test")
    assert len(dicts) == 60
    assert Image.open(dicts[7]["file_name"]).size == (dicts[7]["width"], dicts[7]["height"]) == (160, 128)
    assert Image.open(dicts[7]["sem_seg_file_name"]).size == (160, 128)
    for name in ("shapes_train", "shapes_test"):
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == ["person", "bicycle", "car"]
        assert metadata.stuff_classes == ["background", "person", "bicycle", "car"]
        assert (metadata.ignore_label, metadata.evaluator_type) == (255, "coco")
    found = average_precision("shapes_test", dicts, with_masks=True)
    assert found == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


def small_sets(monkeypatch, cache):
    monkeypatch.setenv("ISO_D2_CACHE", str(cache))
    monkeypatch.setattr(
        scene_sets, "SPLITS", {name: (3, seed) for name, (_, seed) in scene_sets.SPLITS.items()}
    )


def read_labels(record):
    return np.array(Image.open(record["sem_seg_file_name"]))


def test_sets_of_label_images_alone(monkeypatch, tmp_path):
    small_sets(monkeypatch, tmp_path)
    for split in ("train", "test"):
        dicts = DatasetCatalog.get(f"shapes_sem_seg_{split}")
        detection = DatasetCatalog.get(f"shapes_{split}")
        assert [d["file_name"] for d in dicts] == [d["file_name"] for d in detection]
        assert [d["sem_seg_file_name"] for d in dicts] == [d["sem_seg_file_name"] for d in detection]
        assert not any("annotations" in d for d in dicts)
        metadata = MetadataCatalog.get(f"shapes_sem_seg_{split}")
        assert metadata.stuff_classes == ["background", "person", "bicycle", "car"]
        assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    assert not MetadataCatalog.get("shapes_sem_seg_test").get("thing_classes")


def test_panoptic_sets_merge_the_things(monkeypatch, tmp_path):
    small_sets(monkeypatch, tmp_path)
    for split in ("train", "test"):
        dicts = DatasetCatalog.get(f"shapes_panoptic_{split}")
        for record, detection in zip(dicts, DatasetCatalog.get(f"shapes_{split}"), strict=True):
            assert record["file_name"] == detection["file_name"]
            assert record["annotations"] == detection["annotations"]
            things = read_labels(detection) > 0
            # PanopticFPN leaves label 0 to the instances.
            assert things.any() and (read_labels(record) == np.where(things, 0, 1)).all()
        metadata = MetadataCatalog.get(f"shapes_panoptic_{split}")
        assert metadata.thing_classes == ["person", "bicycle", "car"]
        assert metadata.stuff_classes == ["things", "background"]
        assert (metadata.ignore_label, metadata.evaluator_type) == (255, "coco")
        assert metadata.json_file == MetadataCatalog.get(f"shapes_{split}").json_file


def test_train_and_test_have_no_image_in_common(monkeypatch, tmp_path):
    small_sets(monkeypatch, tmp_path)
    for name in ("shapes_train", "shapes_test"):
        assert len(DatasetCatalog.get(name)) == 3
    images = digests(tmp_path / "shapes_train-v3" / "images"), digests(tmp_path / "shapes_test-v3" / "images")
    assert not set(images[0].values()) & set(images[1].values())


def test_damaged_cache_says_what_to_remove(monkeypatch, tmp_path):
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path))
    monkeypatch.setattr(scene_sets, "SPLITS", {"test": (2, 1)})
    DatasetCatalog.get("shapes_test")
    (tmp_path / "shapes_test-v3" / "images" / "000001.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"000001.jpg. Remove .*shapes_test-v3: it is then made again"
    ):
        DatasetCatalog.get("shapes_test")


def _load_both_ends(barrier, queue):
    barrier.wait()
    queue.put(len(DatasetCatalog.get("shapes_test")))


def test_two_processes_may_make_the_set_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path))
    monkeypatch.setattr(scene_sets, "SPLITS", {"test": (4, 1)})
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_load_both_ends, args=(barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [4, 4]
    for process in processes:
        process.join()
    assert [path.name for path in tmp_path.iterdir()] == ["shapes_test-v3"]
