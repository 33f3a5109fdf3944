"""Every config is in the table, loads and builds; every part of a model learns and infers."""

import functools
import gc
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from iso_d2.engine import Trainer, build_optimizer
from iso_d2.engine.setup import load_config
from iso_d2.isometry import SharedScale

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
NAMES = [name for name in FILES if "Base-" not in name]
TABLE = (CONFIGS / "README.md").read_text()

# Beside each network the others with the same data and schedule
COMPARISONS = {
    "risonet50_frcnn_fpn": ["resnet50_frcnn_fpn"],
    "cifar/risonet18_cifar10": ["isonet18_cifar10", "resnet18_cifar10", "resnet18_nonorm_cifar10"],
    "cifar/risonet18_cifar100": ["isonet18_cifar100", "resnet18_cifar100"],
    "isounet_lgg": ["unet_lgg"],
    "quick/isounet_narrow_lgg": ["unet_narrow_lgg", "unet_nonorm_narrow_lgg"],
}
# Report, Sections 3.1 and 5.1: rate, epochs, after which of them it falls, by what factor
REPORTED = {
    "cifar/risonet18_cifar10.yaml": (0.02, 100, (30, 60, 90), 0.1),
    "isounet_lgg.yaml": (0.025, 50, (5, 15, 25, 35, 45), 0.5),
}

SMALL_IMAGES = [["Resize", {"height": 64, "width": 96}]]
# Two steps on small images
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "DATALOADER.NUM_WORKERS": 0,
    "ISO.ORTHO.PERIOD": 2,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.EPOCHS": 0,
    "SOLVER.EPOCH_STEPS": (),
    "SOLVER.WARMUP_EPOCHS": 0,
    "TEST.EVAL_EPOCHS": 0,
    "TEST.BATCH_SIZE": 2,
}
SCENES = {
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.ALBUMENTATIONS.TRAIN": SMALL_IMAGES,
    "INPUT.ALBUMENTATIONS.TEST": SMALL_IMAGES,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.CONV_DIMS": [64],
    "MODEL.RPN.POST_NMS_TOPK_TEST": 8,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
}
# Of each meta-architecture: generated data, and what else is changed
TINY = {
    "GeneralizedRCNN": ("shapes", SCENES),
    "RetinaNet": ("shapes", SCENES),
    "SemanticSegmentor": ("shapes_sem_seg", {**SCENES, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4}),
    # The scaled signal takes 10 s to start and is trained in the quick detector.
    "PanopticFPN": ("shapes_panoptic", {**SCENES, "MODEL.ISONET.SIGNAL": "paper"}),
    "ImageClassifier": ("shapes_cls", {"MODEL.CLASSIFIER.NUM_CLASSES": 10}),
    "UNetSegmentor": (
        "phantom",
        {
            "MODEL.UNET.BASE_CHANNELS": 4,
            "INPUT.ALBUMENTATIONS.TRAIN": [],
            "INPUT.ALBUMENTATIONS.TEST": [],
        },
    ),
}
SEMANTIC_CLASSES = {"SemanticSegmentor": 4, "PanopticFPN": 2, "UNetSegmentor": 1}


@functools.cache
def load(name):
    """The config as it is, but for the device, on which weights take neither memory nor time."""
    cfg = load_config(CONFIGS / name, ["MODEL.DEVICE", "meta"])
    cfg.freeze()
    return cfg


def parts(name):
    """set: what a config's model is made of, whatever its depth and width."""
    model = load(name).MODEL
    isonet, backbone = model.ISONET, model.BACKBONE.NAME
    if model.META_ARCHITECTURE == "UNetSegmentor":
        net = (model.UNET.ISOMETRIC, model.UNET.NORM)
    elif "resnet" in backbone:
        net = (backbone, model.RESNETS.NORM)
    else:
        net = (backbone, isonet.RESIDUAL, isonet.STEM, str(isonet.OUT_FEATURES))
    return {net, model.META_ARCHITECTURE, f"masks {model.MASK_ON}", f"signal {isonet.SIGNAL}"}


def names_with_every_part():
    """Some names, the shallow ones first, whose models have every part that any has."""
    chosen, seen = [], set()
    for name in sorted(NAMES, key=lambda name: (name.startswith("quick/"), load(name).MODEL.ISONET.DEPTH)):
        if not parts(name) <= seen:
            chosen.append(name)
            seen |= parts(name)
    return sorted(chosen)


def test_table_has_a_row_for_each_file():
    assert sorted(re.findall(r"^\| `([\w/.-]+\.yaml)` \|", TABLE, flags=re.MULTILINE)) == FILES


def test_commands_and_changes_of_the_page_are_taken():
    changes = [shlex.split(code) for code in re.findall(r"`([A-Z][A-Z_]*\.[^`]+)`", TABLE)]
    assert len(changes) >= 8
    for opts in changes:
        load_config(opts=opts)
    (command,) = re.findall(r"^ +python tools/train_net.py --config-file (.+)$", TABLE, flags=re.MULTILINE)
    config, *opts = command.split()
    load_config(CONFIGS.parent / config, opts)


def numbers(document):
    """All numbers in what json.loads gives, at any depth."""
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list):
        return [number for item in document for number in numbers(item)]
    return [document] if isinstance(document, (int, float)) else []


def test_results_in_the_table_are_those_of_their_files():
    cells = re.findall(r"\[([\d., ]+)\]\((\.\./results/[\w/.-]+\.json)\), n = (\d+)", TABLE)
    assert len(cells) == TABLE.count(".json)")
    for values, path, n in cells:
        measured = numbers(json.loads((CONFIGS / path).read_text()))
        values = values.split(", ")
        assert len(values) == int(n)
        for value in values:
            assert value in {f"{number:.{len(value.split('.')[1])}f}" for number in measured}, (value, path)


@pytest.mark.parametrize("name", NAMES)
def test_data_are_registered_and_the_schedule_fits(name):
    cfg = load(name)
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(DatasetCatalog.list())
    solver = cfg.SOLVER
    if solver.EPOCHS:
        steps, end = solver.EPOCH_STEPS, solver.EPOCHS
        warmup, evaluation = solver.WARMUP_EPOCHS, cfg.TEST.EVAL_EPOCHS
    else:
        steps, end = solver.STEPS, solver.MAX_ITER
        warmup, evaluation = solver.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD
    assert [warmup, *steps, end] == sorted({warmup, *steps, end})
    assert evaluation == 0 or (evaluation < end and end % evaluation == 0)


@pytest.mark.parametrize("name", NAMES)
def test_model_builds_at_full_size(name):
    cfg = load(name)
    with torch.device("meta"):
        model = build_model(cfg)
    optimized = {id(p) for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    if "iso" in name:
        assert not [n for n, module in model.named_modules() if "Norm" in type(module).__name__]
    if cfg.MODEL.META_ARCHITECTURE == "UNetSegmentor":
        assert model.standardize == "image"
    else:  # Detectron2's defaults hurt a network without norm that starts from scratch.
        assert min(cfg.MODEL.PIXEL_STD) > 1 and cfg.MODEL.BACKBONE.FREEZE_AT == 0
    classes = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    heads = {"ImageClassifier": "CLASSIFIER", "RetinaNet": "RETINANET"}
    head = heads.get(cfg.MODEL.META_ARCHITECTURE, "ROI_HEADS")
    assert classes is None or len(classes) == cfg.MODEL[head].NUM_CLASSES


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_differ_in_the_network_alone(name):
    first = load(f"{name}.yaml")
    for other in COMPARISONS[name]:
        cfg = load(str(Path(name).with_name(f"{other}.yaml")))
        changed = {key for key in cfg if cfg[key] != first[key]}
        assert changed <= {"MODEL", "ISO", "OUTPUT_DIR"}
        assert cfg.MODEL.PIXEL_STD == first.MODEL.PIXEL_STD
        assert cfg.MODEL.UNET.LOSS == first.MODEL.UNET.LOSS


@pytest.mark.parametrize("name", REPORTED)
def test_schedule_is_the_reports(name):
    solver = load(name).SOLVER
    assert REPORTED[name] == (solver.BASE_LR, solver.EPOCHS, solver.EPOCH_STEPS, solver.GAMMA)
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.9, 1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("imagenet/i")])
def test_isonet_takes_a_fifth_of_the_rate_of_r_isonet(name):
    # The paper's code: at every depth 0.1 per 256 images for R-ISONet, as for ResNet.
    plain, residual = load(name).SOLVER, load(name.replace("/i", "/ri")).SOLVER
    assert pytest.approx(0.1 / 256) == residual.BASE_LR / residual.IMS_PER_BATCH
    assert pytest.approx(0.02 / 256) == plain.BASE_LR / plain.IMS_PER_BATCH


def learning_modules(model):
    """Weights that must learn: of convolutions, linear layers, norms, and the residual scales.

    A threshold learns only once something falls below it, which two steps need not bring about.
    """
    for name, module in model.named_modules():
        parameter = module.scale if isinstance(module, SharedScale) else getattr(module, "weight", None)
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
            yield name, parameter


@pytest.fixture
def two_steps(tmp_path):
    """Function that trains a config for two steps and gives the trainer.

    By then every weight had a gradient, and every gradient was finite. Whether a weight moves is a matter of
    rounding: the focal loss of the few anchors on p7 is too small.
    """

    def train(name):
        # NumPy's state chooses the images; two slices without tumour would hardly give a gradient.
        np.random.seed(0)
        torch.manual_seed(0)
        data, more = TINY[load(name).MODEL.META_ARCHITECTURE]
        changes = {**SMALL, **more, "OUTPUT_DIR": str(tmp_path)}
        changes |= {"DATASETS.TRAIN": (f"{data}_train",), "DATASETS.TEST": (f"{data}_test",)}
        trainer = Trainer(load_config(CONFIGS / name, [x for item in changes.items() for x in item]))
        still = dict(learning_modules(trainer.model))
        with EventStorage(0) as trainer.storage:
            trainer.before_train()
            for trainer.iter in range(2):
                trainer.run_step()
                for n, p in trainer.model.named_parameters():
                    assert p.grad is None or torch.isfinite(p.grad).all(), n
                still = {n: p for n, p in still.items() if p.grad is None or not p.grad.any()}
        assert not list(still)
        return trainer

    yield train
    # Trainers refer to themselves: without this the models of all configs would stay until the end.
    gc.collect()


@pytest.mark.parametrize("name", names_with_every_part())
def test_trains_and_infers(name, two_steps):
    trainer = two_steps(name)
    losses = trainer.storage.latest()
    if "iso" in name:
        assert 0 <= losses["loss_ortho"][0] < 1e-3
    else:
        assert "loss_ortho" not in losses

    cfg = trainer.cfg
    batch = next(iter(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])))
    trainer.model.eval()
    with torch.no_grad():
        outputs = trainer.model(batch)
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture == "ImageClassifier":
        assert outputs["scores"].shape == (2, 10)
        return
    for record, output in zip(batch, outputs, strict=True):
        size = (record["height"], record["width"])
        if architecture in SEMANTIC_CLASSES:
            assert output["sem_seg"].shape == (SEMANTIC_CLASSES[architecture], *size)
        if architecture in ("GeneralizedRCNN", "RetinaNet", "PanopticFPN"):
            assert output["instances"].image_size == size
        if architecture == "PanopticFPN":
            assert output["panoptic_seg"][0].shape == size
