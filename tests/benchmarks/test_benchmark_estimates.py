import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import many_gpus
from benchmarks.appetite import Feed, measure_appetite, photographs
from benchmarks.estimates import Machine, Work, all_reduce_seconds, count, seconds
from benchmarks.options import Options

TOY = Machine("toy", half=100, single=10, memory=50, reached=0.5, launch=0.01, link=20, network=4, node=8)
TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


def test_the_slowest_of_products_memory_and_launches_counts():
    work = Work(multiply_adds=200, bytes=100, launches=3)
    assert seconds(work, TOY, TOY.half) == 400 / 50
    assert seconds(work, TOY, TOY.single) == 400 / 5
    assert seconds(Work(200, 500, 3), TOY, TOY.half) == 500 / 25
    assert seconds(Work(200, 500, 3).halved(), TOY, TOY.half) == 250 / 25
    assert seconds(Work(200, 100, 1000), TOY, TOY.half) == pytest.approx(10)


def test_work_of_more_images_follows_from_that_of_one_and_of_two():
    assert Work(10, 7, 5).of(4, Work(20, 9, 5)) == Work(40, 13, 5)


def test_ring_of_an_all_reduce():
    assert all_reduce_seconds(100, 1, TOY) == 0
    assert all_reduce_seconds(100, 2, TOY) == 100 / 20
    assert all_reduce_seconds(100, 16, TOY) == pytest.approx(2 * 15 / 16 * 100 / 4)


def test_work_is_counted():
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    assert count(lambda: a @ b) == Work(2 * 3 * 4, 4 * (6 + 12 + 8), 1)


def test_shares_are_uneven_once_a_layer_is_above_an_even_share():
    layers = {f"small{i}": nn.Conv2d(4, 4, 1) for i in range(4)}
    assert len(set(many_gpus.loads(layers, 2))) == 1
    layers["large"] = nn.Conv2d(64, 64, 3)
    (whole,) = many_gpus.loads(layers, 1)
    assert sorted(many_gpus.loads(layers, 2)) == [whole - many_gpus.loads({"": layers["large"]}, 1)[0]] + [
        many_gpus.loads({"": layers["large"]}, 1)[0]
    ]
    assert max(many_gpus.loads(layers, 3)) == max(many_gpus.loads(layers, 512))


def test_part_of_many_gpus(monkeypatch):
    monkeypatch.setattr(many_gpus, "MEASURED", (1,))
    shares, estimated, measured = many_gpus.measure_many_gpus(TINY, 0)
    assert [row["processes"] for row in shares.rows] == list(many_gpus.PROCESSES)
    assert shares.rows[0]["largest share"] == shares.rows[0]["over an even one"] == 1
    assert shares.rows[-1]["over an even one"] == pytest.approx(512 * shares.rows[-1]["largest share"])
    for row in estimated.rows:
        work = row["forward and backward, ms"] + row["penalty, ms"]
        assert row["step, ms"] == pytest.approx(max(work, row["all-reduce, ms"]))
    assert measured.rows[0]["slowest over all"]["median"] == measured.rows[0]["by multiply-adds"] == 1


def test_photographs_are_files_of_their_size(tmp_path):
    first, second = photographs(tmp_path, 2)
    with Image.open(first["file_name"]) as image:
        assert image.size == (first["width"], first["height"]) == (640, 480)
    assert first["file_name"] != second["file_name"] and len(first["annotations"]) == 4


def test_part_of_appetite(tiny_detector):
    detector = ("MODEL.ISONET.DEPTH", 18, *tiny_detector, "INPUT.ALBUMENTATIONS.TRAIN",
                [["Resize", {"height": 32, "width": 32}]])  # fmt: skip
    classifier = ("MODEL.ISONET.DEPTH", 8, "SOLVER.IMS_PER_BATCH", 4)
    feeds = [
        Feed("mapped", "risonet50_frcnn_fpn.yaml", None, detector),
        Feed("whole", "quick/risonet20_shapes_cls.yaml", "shapes_cls_train", classifier),
    ]
    (table,) = measure_appetite(TINY, 0, feeds)
    mapped, whole = table.rows
    assert mapped["launches of a batch's augmentation"] is None
    assert 0 < whole["launches of a batch's augmentation"] < 20
    for row in table.rows:
        assert row["n"] == 5
        rate = row["images / s of a GPU, estimated"]
        assert row["cores"] == pytest.approx(rate / row["images / s of a core"]["median"])
        assert row["batch"] / rate >= row["launches a step"] * 5e-6 * 0.999
