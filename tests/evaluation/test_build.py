import engine_toys
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from PIL import Image

from iso_d2.evaluation import VisualPredictions, build_evaluator


@pytest.fixture
def config(toy_data, tmp_path):
    """Function that gives the toys' config with so many pictures."""
    return lambda visualize: engine_toys.toy_config(tmp_path, "TEST.VISUALIZE", visualize)


@pytest.mark.parametrize(
    "name, expected", [("toy_test", COCOEvaluator), ("shapes_sem_seg_test", SemSegEvaluator)]
)
def test_evaluator_of_each_type(name, expected, config):
    assert isinstance(build_evaluator(config(0), name), expected)
    both = build_evaluator(config(4), name)._evaluators
    assert [type(evaluator) for evaluator in both] == [expected, VisualPredictions]
    assert both[1].num_images == 4


def test_true_boxes_have_full_precision(config, tmp_path):
    evaluator = build_evaluator(config(1), "toy_test")
    evaluator.reset()
    for record in DatasetCatalog.get("toy_test"):
        evaluator.process([record], [engine_toys.ToyDetector(None).predict(record)])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert (tmp_path / "inference" / "toy_test" / "coco_instances_results.json").exists()
    assert (tmp_path / "visualizations" / "toy_test" / "000_toy_test_0.png").exists()


@pytest.mark.parametrize("kind", ["cocoa", None])
def test_unknown_type(kind, config, monkeypatch):
    monkeypatch.setitem(vars(MetadataCatalog.get("toy_test")), "evaluator_type", kind)
    message = (
        f"'toy_test' has evaluator_type {kind!r}, accepted are classification, coco, lvis, "
        "medical_segmentation, pascal_voc, sem_seg"
    )
    with pytest.raises(ValueError, match=message):
        build_evaluator(config(0), "toy_test")


def test_perfect_semantic_labels_of_drawn_scenes_score_100(config):
    """Through Detectron2's SemSegEvaluator, whose own reading of label files fails with NumPy 2."""
    records = DatasetCatalog.get("shapes_sem_seg_test")[:3]
    evaluator = build_evaluator(config(0), "shapes_sem_seg_test")
    evaluator.reset()
    for record in records:
        labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]), np.int64))
        scores = torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()  # (H, W, C) -> (C, H, W)
        evaluator.process([record], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)
