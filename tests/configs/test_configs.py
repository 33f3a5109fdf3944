"""Every config loads, builds, trains two steps on small generated images and infers."""

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from iso_d2.data.shapes import HEIGHT, WIDTH
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
    "ISO.ORTHO.PERIOD": 1,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
}
DETECTION = {
    "DATASETS.TRAIN": ("shapes_train",),
    "DATASETS.TEST": ("shapes_test",),
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.ALBUMENTATIONS.TRAIN": SMALL_IMAGES,
    "INPUT.ALBUMENTATIONS.TEST": SMALL_IMAGES,
}
CLASSIFICATION = {
    "DATASETS.TRAIN": ("shapes_cls_train",),
    "DATASETS.TEST": ("shapes_cls_test",),
    "INPUT.CLASSIFICATION.TEST_BATCH": 2,
    "SOLVER.EPOCHS": 0,
    "SOLVER.EPOCH_STEPS": (),
    "SOLVER.WARMUP_EPOCHS": 0,
    "TEST.EVAL_EPOCHS": 0,
}
CLASSIFIERS = [name for name in NAMES if name.startswith("cifar/") or name.endswith("_cls.yaml")]
DETECTORS = [name for name in NAMES if name not in CLASSIFIERS]


def trained_modules(model):
    """Weights that must move: of convolutions, linear layers, norms, and the residual scales.

    A threshold moves only once something falls below it, which two steps need not bring about.
    """
    for name, module in model.named_modules():
        parameter = module.scale if isinstance(module, SharedScale) else getattr(module, "weight", None)
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
            yield name, parameter


def test_there_are_configs():
    assert len(DETECTORS) >= 14 and len(CLASSIFIERS) >= 20


def train_two_steps(name, changes, tmp_path):
    """The trainer after two steps, in which every weight has moved and every gradient was finite."""
    torch.manual_seed(0)
    pairs = [x for item in {**SMALL, **changes}.items() for x in item]
    cfg = load_config(CONFIGS / name, [*pairs, "OUTPUT_DIR", str(tmp_path)])
    trainer = Trainer(cfg)
    before = {n: p.detach().clone() for n, p in trained_modules(trainer.model)}
    with EventStorage(0) as trainer.storage:
        trainer.before_train()
        for trainer.iter in range(2):
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
    return trainer


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_trains_and_infers(name, tmp_path):
    # The focal loss of the few anchors on p6 and p7 is too small to move float32 weights at a low rate.
    rate = {"SOLVER.BASE_LR": 1.0} if "retinanet" in name else {}
    trainer = train_two_steps(name, {**DETECTION, **rate}, tmp_path)
    mapped = next(iter(Trainer.build_test_loader(trainer.cfg, "shapes_test")))
    with torch.no_grad():
        output = trainer.model(mapped)[0]
    assert output["instances"].image_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_trains_and_infers(name, tmp_path):
    trainer = train_two_steps(name, CLASSIFICATION, tmp_path)
    batch = next(iter(Trainer.build_test_loader(trainer.cfg, "shapes_cls_test")))
    with torch.no_grad():
        scores = trainer.model(batch)["scores"]
    assert scores.shape == (2, 100 if "cifar100" in name else 10)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name.startswith("cifar/")])
def test_cifar_settings_are_the_reports(name):
    cfg = load_config(CONFIGS / name)
    solver, isonet = cfg.SOLVER, cfg.MODEL.ISONET
    assert (solver.EPOCHS, solver.EPOCH_STEPS, solver.GAMMA) == (100, (30, 60, 90), 0.1)
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.02, 0.9, 1e-4)
    assert solver.IMS_PER_BATCH == 128
    data = "cifar100" if "cifar100" in name else "cifar10"
    assert (f"{data}_train",) == cfg.DATASETS.TRAIN
    assert (f"{data}_test", f"{data}_train") == cfg.DATASETS.TEST
    augmentation = cfg.INPUT.CLASSIFICATION
    assert augmentation.FLIP and (4 if "_crop" in name else 0) == augmentation.CROP_PADDING
    if "isonet" in name:
        depth = int(name.split("isonet")[1].split("_")[0])
        assert (depth, "/risonet" in name) == (isonet.DEPTH, isonet.RESIDUAL)
        assert pytest.approx(3e-4 if "gamma3e-4" in name else 1e-4) == cfg.ISO.ORTHO.COEFF
