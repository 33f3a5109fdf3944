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
