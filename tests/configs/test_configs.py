"""Every config loads, builds, trains two steps on small generated images and infers."""

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from torch import nn

from iso_d2.engine import Trainer
from iso_d2.engine.setup import load_config
from iso_d2.isometry import SharedScale

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("Base-"))

SMALL_IMAGES = [["Resize", {"height": 64, "width": 96}]]
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TRAIN": ("shapes_train",),
    "DATASETS.TEST": ("shapes_test",),
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.ALBUMENTATIONS.TRAIN": SMALL_IMAGES,
    "INPUT.ALBUMENTATIONS.TEST": SMALL_IMAGES,
    "ISO.ORTHO.PERIOD": 1,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
}


def trained_modules(model):
    """Weights that must move: of convolutions, linear layers, norms, and the residual scales.

    A threshold moves only once something falls below it, which two steps need not bring about.
    """
    for name, module in model.named_modules():
        parameter = module.scale if isinstance(module, SharedScale) else getattr(module, "weight", None)
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
            yield name, parameter


def test_there_are_configs():
    assert len(NAMES) >= 14


@pytest.mark.parametrize("name", NAMES)
def test_config_trains_and_infers(name, tmp_path):
    torch.manual_seed(0)
    cfg = load_config(
        CONFIGS / name, [x for item in SMALL.items() for x in item] + ["OUTPUT_DIR", str(tmp_path)]
    )
    trainer = Trainer(cfg)
    before = {n: p.detach().clone() for n, p in trained_modules(trainer.model)}
    with EventStorage(0) as trainer.storage:
        trainer.before_train()
        for trainer.iter in range(2):
            trainer.before_step()
            trainer.run_step()
            for n, p in trainer.model.named_parameters():
                assert p.grad is None or torch.isfinite(p.grad).all(), n
        losses = trainer.storage.latest()
    still = [n for n, p in trained_modules(trainer.model) if torch.equal(p, before[n])]
    assert not still
    if cfg.ISO.ORTHO.COEFF > 0:
        assert 0 <= losses["loss_ortho"][0] < 1e-3
    else:
        assert "loss_ortho" not in losses

    trainer.model.eval()
    sample = DatasetCatalog.get("shapes_test")[:1]
    mapped = next(iter(Trainer.build_test_loader(cfg, "shapes_test")))
    with torch.no_grad():
        output = trainer.model(mapped)[0]
    assert output["instances"].image_size == (sample[0]["height"], sample[0]["width"])
