import json
import math

import classification_toys
import numpy as np
import pytest
import torch
from classification_toys import CLASSES, NAME, SAMPLES
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from PIL import Image

from iso_d2.config import add_iso_config
from iso_d2.evaluation import ClassificationEvaluator, build_evaluator
from iso_d2.evaluation.build import METRICS
from iso_d2.evaluation.classification import draw_confusion_matrix

# By hand from SAMPLES: 5 of 7 right; minus the mean logarithm of 1/2, 1/4, 1/2, 1, 3/4, 1/8, 5/8
CONFUSION = [[1, 0, 1], [1, 3, 0], [0, 0, 1]]
TOP1 = 100 * 5 / 7
LOSS = -math.log(1 / 2 * 1 / 4 * 1 / 2 * 3 / 4 * 1 / 8 * 5 / 8) / 7


@pytest.fixture(autouse=True)
def registered():
    classification_toys.register()
    yield
    MetadataCatalog.remove(NAME)


def batch(samples, offset=0):
    labels, scores = zip(*samples, strict=True)
    return {"labels": torch.tensor(labels)}, {"scores": torch.tensor(scores)}


def listed(samples):
    inputs = [{"label": label} for label, _ in samples]
    return inputs, [{"scores": torch.tensor(scores)} for _, scores in samples]


@pytest.mark.parametrize("form", [batch, listed])
def test_figures_and_files(form, tmp_path):
    evaluator = ClassificationEvaluator(NAME, str(tmp_path / "a" / "b"))
    for _ in range(2):  # a second evaluation starts anew
        evaluator.reset()
        evaluator.process(*form(SAMPLES[:5]))
        evaluator.process(*form(SAMPLES[5:]))
        metrics = evaluator.evaluate()["classification"]
    assert {f"classification/{name}" for name in metrics} == set(METRICS["classification"])
    # 3 classes are all among the first five
    assert metrics == pytest.approx({"top1": TOP1, "top5": 100, "loss": LOSS})
    content = json.loads((tmp_path / "a" / "b" / "classification.json").read_text())
    assert content["confusion_matrix"] == CONFUSION
    assert content["class_accuracy"] == pytest.approx({"cat": 50, "dog": 75, "owl": 100})
    assert content["num_images"] == 7
    assert content["top1"] == metrics["top1"]
    with Image.open(tmp_path / "a" / "b" / "confusion_matrix.png") as picture:
        assert picture.size == (800, 700)


def test_two_processes_count_every_sample_once(tmp_path, forked):
    launch(
        classification_toys.evaluate_in_one_process,
        num_gpus_per_machine=2,
        dist_url="auto",
        args=(str(tmp_path),),
    )
    main, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert {main["share"], other["share"]} == {3, 4}
    assert main["results"]["classification"] == pytest.approx({"top1": TOP1, "top5": 100, "loss": LOSS})
    assert other["results"] == {}
    content = json.loads((tmp_path / "results" / "classification.json").read_text())
    assert content["confusion_matrix"] == CONFUSION and content["num_images"] == 7


def test_top5_of_more_classes(tmp_path):
    MetadataCatalog.pop(NAME)
    MetadataCatalog.get(NAME).thing_classes = list("abcdefgh")
    evaluator = ClassificationEvaluator(NAME, str(tmp_path))
    evaluator.reset()
    scores = [0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05, 0.0]
    evaluator.process(*batch([(0, scores), (4, scores), (5, scores), (7, scores)]))
    metrics = evaluator.evaluate()["classification"]
    assert (metrics["top1"], metrics["top5"]) == (25, 50)
    # The probability 0 counts as the smallest normal float32, 2^-126
    expected = -(math.log(0.3 * 0.1 * 0.08) - 126 * math.log(2)) / 4
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    accuracy = json.loads((tmp_path / "classification.json").read_text())["class_accuracy"]
    assert (accuracy["a"], accuracy["h"], accuracy["b"]) == (100, 0, None)  # no "b" was seen


def test_no_samples(tmp_path):
    evaluator = ClassificationEvaluator(NAME, str(tmp_path))
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_model_of_another_number_of_classes(tmp_path):
    evaluator = ClassificationEvaluator(NAME, str(tmp_path))
    evaluator.reset()
    with pytest.raises(ValueError, match=r"'scored_test' has 3 classes, the model 2: set .*NUM_CLASSES 3"):
        evaluator.process(*batch([(0, [0.5, 0.5])]))


def test_picture_is_dark_where_the_counts_are(tmp_path):
    draw_confusion_matrix(torch.tensor([[0, 5], [0, 7]]), ["a", "b"], str(tmp_path / "a.png"))
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(int)
    # Both rows are predicted as b: of the two columns of cells only the right one is dark.
    dark = (pixels < 100).mean(axis=0)
    assert dark[400:560].mean() > 0.7 > 0.1 > dark[120:300].mean()


def test_many_classes_are_drawn_without_names(tmp_path):
    draw_confusion_matrix(torch.eye(100, dtype=torch.int64), list(map(str, range(100))), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_registered_for_its_data_sets(tmp_path):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = build_evaluator(cfg, NAME)
    assert isinstance(evaluator, ClassificationEvaluator)
    assert evaluator.classes == CLASSES
    assert evaluator.output_folder == str(tmp_path / "inference" / NAME)


def with_images(samples, image_format):
    """A batch; image i is i in its first channel and 0 in the others."""
    (inputs, outputs) = batch(samples)
    images = torch.zeros(len(samples), 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = torch.arange(len(samples), dtype=torch.uint8)[:, None, None]
    return {**inputs, "images": images}, outputs


@pytest.mark.parametrize("image_format, red", [("RGB", 0), ("BGR", 2)])
def test_the_worst_and_the_first_images_are_drawn(tmp_path, image_format, red):
    folder = tmp_path / "pictures"
    evaluator = ClassificationEvaluator(NAME, str(tmp_path), str(folder), 4, image_format)
    for _ in range(2):
        evaluator.reset()
        evaluator.process(*with_images(SAMPLES, image_format))
        evaluator.evaluate()
    entries = json.loads((folder / "pictures.json").read_text())
    # the true class got 1/8 in sample 5, 1/4 in sample 1, and 1/2, 1/4 in the first two
    assert [entry["error"] for entry in entries] == [0.875, 0.75, 0.5, 0.75]
    assert [entry["wrong"] for entry in entries] == [True, True, False, True]
    assert entries[0]["title"] == "dog (one of the worst)" and entries[2]["title"] == "cat (one of the first)"
    assert entries[0]["note"] == "predicted cat, 50.0 %; true class 12.5 %"
    assert entries[2]["note"] == "predicted cat, 50.0 %"
    pixels = [np.asarray(Image.open(folder / entry["file"]))[0, 0] for entry in entries]
    assert [values[red] for values in pixels] == [5, 1, 0, 1]
    assert sum(int(values.sum()) for values in pixels) == 7


def test_images_of_a_list_are_drawn_over_several_batches(tmp_path):
    evaluator = ClassificationEvaluator(NAME, str(tmp_path), str(tmp_path / "pictures"), 3)
    evaluator.reset()
    for i, (label, scores) in enumerate(SAMPLES):
        image = torch.full((3, 2, 2), i, dtype=torch.uint8)
        evaluator.process([{"label": label, "image": image}], [{"scores": torch.tensor(scores)}])
    evaluator.evaluate()
    entries = json.loads((tmp_path / "pictures" / "pictures.json").read_text())
    pixels = [np.asarray(Image.open(tmp_path / "pictures" / entry["file"]))[0, 0, 0] for entry in entries]
    assert pixels == [5, 0, 1]
