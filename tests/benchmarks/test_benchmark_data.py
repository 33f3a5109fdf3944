import pytest

from benchmarks.data import DataPath, data_paths, measure_data, training_loop
from benchmarks.options import Options

TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


def test_data_part_sets_what_is_given_beside_what_is_taken(tiny_detector):
    resize = ["INPUT.ALBUMENTATIONS.TRAIN", [["Resize", {"height": 32, "width": 32}]]]
    paths = [
        DataPath(
            "mapper",
            "risonet50_frcnn_fpn.yaml",
            "shapes_train",
            1,
            ("MODEL.ISONET.DEPTH", 18, *tiny_detector, *resize, "DATALOADER.NUM_WORKERS", 0),
        ),
        DataPath(
            "batches", "quick/isounet_phantom.yaml", "phantom_train", 2, ("MODEL.UNET.BASE_CHANNELS", 2)
        ),
    ]
    (table,) = measure_data(TINY, 0, paths)
    for row in table.rows:
        given, taken = row["images / s, one process"]["median"], row["model's images / s"]
        assert row["given over taken, one process"] == pytest.approx(given / taken)
        assert 0 < row["wait over step"]["median"] < 1
        assert row["target"]["text"].startswith("at most 5%")
    assert [row["batch"] for row in table.rows] == [1, 2]


def test_generated_data_take_the_place_of_missing_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    paths = data_paths()
    assert [path.dataset for path in paths] == ["shapes_train", "shapes_cls_train", "phantom_train"]


def test_loop_tells_waiting_from_working():
    made = []

    def loader():
        while True:
            made.append(1)
            yield len(made)

    steps = []
    waits, busy = training_loop(loader(), steps.append, seconds=0, rounds=10)
    assert steps == [1, 2, 3, 4, 5]  # two unmeasured, at least three measured
    assert len(waits) == len(busy) == 3
    assert len(training_loop(loader(), steps.append, seconds=60, rounds=2)[0]) == 2
