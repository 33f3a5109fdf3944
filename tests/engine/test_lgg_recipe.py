"""The recipe for brain MRI on real slices, narrow and with a smaller batch."""

import json
from pathlib import Path

import pytest

from iso_d2.engine import Trainer
from iso_d2.engine.setup import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "isounet_lgg.yaml"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_fifty_steps_without_nan(real_data, precision, tmp_path):
    real_data("lgg-mri-segmentation", "kaggle_3m")
    opts = ["MODEL.UNET.BASE_CHANNELS", 4, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 50, "SEED", 1]
    opts += ["SOLVER.EPOCHS", 0, "SOLVER.EPOCH_STEPS", (), "TEST.EVAL_EPOCHS", 0, "DATASETS.TEST", ()]
    opts += ["SOLVER.STEPS", (), "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    if precision == "bf16":
        opts += ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bf16"]
    trainer = Trainer(load_config(CONFIG, opts))
    trainer.train()  # raises at the first loss that is not finite
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    penalties = [line["loss_ortho"] for line in lines if "loss_ortho" in line]
    assert penalties and max(penalties) < 0.1
