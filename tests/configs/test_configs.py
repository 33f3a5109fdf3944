"""Every config loads, builds, trains two steps on small generated images and infers."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from iso_d2.data.generated.shapes import HEIGHT, WIDTH
from iso_d2.engine import Trainer
from iso_d2.engine.choices import penalty_coefficient, penalty_mode
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
ITERATIONS = {
    "SOLVER.EPOCHS": 0,
    "SOLVER.EPOCH_STEPS": (),
    "SOLVER.WARMUP_EPOCHS": 0,
    "TEST.EVAL_EPOCHS": 0,
}
CLASSIFICATION = {
    **ITERATIONS,
    "DATASETS.TRAIN": ("shapes_cls_train",),
    "DATASETS.TEST": ("shapes_cls_test",),
    "TEST.BATCH_SIZE": 2,
}
SEMANTIC = {
    **DETECTION,
    **ITERATIONS,
    "DATASETS.TRAIN": ("shapes_sem_seg_train",),
    "DATASETS.TEST": ("shapes_sem_seg_test",),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
}
PANOPTIC = {
    **DETECTION,
    "DATASETS.TRAIN": ("shapes_panoptic_train",),
    "DATASETS.TEST": ("shapes_panoptic_test",),
}
MEDICAL = {
    **ITERATIONS,
    "DATASETS.TRAIN": ("phantom_train",),
    "DATASETS.TEST": ("phantom_test",),
    "TEST.BATCH_SIZE": 2,
    "MODEL.UNET.BASE_CHANNELS": 4,
    "INPUT.ALBUMENTATIONS.TRAIN": [],
    "INPUT.ALBUMENTATIONS.TEST": [],
}
CLASSIFIERS = [name for name in NAMES if name.startswith(("cifar/", "imagenet/")) or "_cls." in name]
SEMANTIC_NAMES = [name for name in NAMES if "_semseg_" in name]
PANOPTIC_NAMES = [name for name in NAMES if "_panoptic_" in name]
UNETS = [name for name in NAMES if "unet" in name]
DETECTORS = [name for name in NAMES if name not in (*CLASSIFIERS, *SEMANTIC_NAMES, *PANOPTIC_NAMES, *UNETS)]


def trained_modules(model):
    """Weights that must learn: of convolutions, linear layers, norms, and the residual scales.

    A threshold learns only once something falls below it, which two steps need not bring about.
    """
    for name, module in model.named_modules():
        parameter = module.scale if isinstance(module, SharedScale) else getattr(module, "weight", None)
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
            yield name, parameter


@pytest.fixture(autouse=True)
def memory():
    """Trainers refer to themselves: without this the models of all configs would stay until the end."""
    yield
    gc.collect()


def test_there_are_configs():
    assert len(DETECTORS) >= 14 and len(CLASSIFIERS) >= 20


def train_two_steps(name, changes, tmp_path):
    """The trainer after two steps, in which every weight had a gradient and every gradient was finite.

    Whether a weight moves is a matter of rounding: the focal loss of the few anchors on p7 is too small.
    """
    # NumPy's state chooses the images; two slices without tumour would hardly give a gradient.
    np.random.seed(0)
    torch.manual_seed(0)
    pairs = [x for item in {**SMALL, **changes}.items() for x in item]
    cfg = load_config(CONFIGS / name, [*pairs, "OUTPUT_DIR", str(tmp_path)])
    trainer = Trainer(cfg)
    still = dict(trained_modules(trainer.model))
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert all(id(p) in optimized for p in still.values())
    with EventStorage(0) as trainer.storage:
        trainer.before_train()
        for trainer.iter in range(2):
            trainer.run_step()
            for n, p in trainer.model.named_parameters():
                assert p.grad is None or torch.isfinite(p.grad).all(), n
            still = {n: p for n, p in still.items() if p.grad is None or not p.grad.any()}
        losses = trainer.storage.latest()
    assert not list(still)
    if penalty_coefficient(trainer.cfg) > 0:
        assert 0 <= losses["loss_ortho"][0] < 1e-3
    else:
        assert "loss_ortho" not in losses
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_trains_and_infers(name, tmp_path):
    trainer = train_two_steps(name, DETECTION, tmp_path)
    mapped = next(iter(Trainer.build_test_loader(trainer.cfg, "shapes_test")))
    with torch.no_grad():
        output = trainer.model(mapped)[0]
    assert output["instances"].image_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", SEMANTIC_NAMES)
def test_semantic_segmentor_trains_and_infers(name, tmp_path):
    trainer = train_two_steps(name, SEMANTIC, tmp_path)
    mapped = next(iter(Trainer.build_test_loader(trainer.cfg, "shapes_sem_seg_test")))
    with torch.no_grad():
        assert trainer.model(mapped)[0]["sem_seg"].shape == (4, HEIGHT, WIDTH)


@pytest.mark.parametrize("name", PANOPTIC_NAMES)
def test_panoptic_model_trains_and_infers(name, tmp_path):
    trainer = train_two_steps(name, PANOPTIC, tmp_path)
    mapped = next(iter(Trainer.build_test_loader(trainer.cfg, "shapes_panoptic_test")))
    with torch.no_grad():
        output = trainer.model(mapped)[0]
    assert output["sem_seg"].shape == (2, HEIGHT, WIDTH)
    assert output["instances"].image_size == (HEIGHT, WIDTH)
    assert output["panoptic_seg"][0].shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", UNETS)
def test_unet_trains_and_infers(name, tmp_path):
    trainer = train_two_steps(name, MEDICAL, tmp_path)
    mapped = next(iter(Trainer.build_test_loader(trainer.cfg, "phantom_test")))
    with torch.no_grad():
        outputs = trainer.model(mapped)
    sizes = [(1, record["height"], record["width"]) for record in mapped]
    assert [tuple(output["sem_seg"].shape) for output in outputs] == sizes


@pytest.mark.parametrize("name", ["isounet_lgg.yaml", "unet_lgg.yaml", "unet_nonorm_lgg.yaml"])
def test_lgg_settings_are_the_reports(name):
    cfg = load_config(CONFIGS / name)
    solver, unet = cfg.SOLVER, cfg.MODEL.UNET
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.025, 0.9, 1e-4)
    assert (solver.IMS_PER_BATCH, solver.EPOCHS, solver.GAMMA) == (20, 50, 0.5)
    assert solver.EPOCH_STEPS == (5, 15, 25, 35, 45)
    assert (unet.LOSS, unet.BASE_CHANNELS, unet.DEPTH) == ("dice", 64, 5)
    iso = name.startswith("iso")
    assert (iso, "BN" if name == "unet_lgg.yaml" else "") == (unet.ISOMETRIC, unet.NORM)
    assert (1e-4 if iso else 0) == penalty_coefficient(cfg)
    assert not iso or (unet.SRELU_INIT, unet.SRELU_LEARNABLE, penalty_mode(cfg)) == (-1.0, False, "exact")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_trains_and_infers(name, tmp_path):
    trainer = train_two_steps(name, CLASSIFICATION, tmp_path)
    batch = next(iter(Trainer.build_test_loader(trainer.cfg, "shapes_cls_test")))
    with torch.no_grad():
        scores = trainer.model(batch)["scores"]
    classes = {"cifar100": 100, "imagenet": 1000}
    assert scores.shape == (2, next((n for key, n in classes.items() if key in name), 10))


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name.startswith("imagenet/")])
def test_imagenet_settings_are_the_papers(name):
    cfg = load_config(CONFIGS / name)
    rates = {"isonet18": (0.01, 128), "isonet34": (0.01, 128), "isonet50": (0.0075, 96)}
    rates |= {"isonet101": (0.005, 64), "risonet18": (0.05, 128), "risonet34": (0.05, 128)}
    rates |= {"risonet50": (0.025, 64), "risonet101": (0.0125, 32)}
    net = name.removeprefix("imagenet/").removesuffix("_imagenet.yaml")
    assert rates[net] == (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH)
    assert (3e-4 if net == "isonet101" else 1e-4) == penalty_coefficient(cfg)
    assert (0.4 if net.startswith("r") else 0.1) == cfg.MODEL.CLASSIFIER.DROPOUT
    assert (net.startswith("r"), int(net.split("isonet")[1])) == (
        cfg.MODEL.ISONET.RESIDUAL,
        cfg.MODEL.ISONET.DEPTH,
    )


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
        assert pytest.approx(3e-4 if "gamma3e-4" in name else 1e-4) == penalty_coefficient(cfg)
