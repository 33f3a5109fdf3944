import pytest
from engine_toys import toy_config

from iso_d2.engine import Trainer
from iso_d2.engine.setup import load_config


@pytest.mark.parametrize("key", ["SOLVER.MAX_ITER", "TEST.BATCH_SIZE"])
def test_numbers_that_would_fail_at_the_end(tmp_path, toy_data, key):
    with pytest.raises(ValueError, match=f"{key} must be at least 1, got 0"):
        Trainer(toy_config(tmp_path, key, 0))


@pytest.mark.parametrize(
    "kind, name",
    [
        ("ImageClassifier", "shapes_test"),
        ("UNetSegmentor", "shapes_test"),
        ("GeneralizedRCNN", "shapes_cls_test"),
        ("RetinaNet", "shapes_cls_test"),
    ],
)
def test_data_that_the_model_has_no_prediction_for(kind, name):
    cfg = load_config(opts=["MODEL.META_ARCHITECTURE", kind, "DATASETS.TRAIN", f"('{name}',)"])
    with pytest.raises(ValueError, match=f"{name}' .* is not for MODEL.META_ARCHITECTURE {kind}"):
        Trainer.check_datasets(cfg)
