import copy
import subprocess
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from iso_d2.config import add_iso_config
from iso_d2.engine import ModelPenalty, build_optimizer
from iso_d2.isometry import ScaledConv2d, SharedScale, SReLU
from iso_d2.modeling import IsoBlock, ISONet, isometrize

OTHER_PROJECT = """
import iso_d2
from detectron2.config import get_cfg
from detectron2.modeling import build_model

cfg = get_cfg()
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.BACKBONE.NAME = "build_isonet_fpn_backbone"
cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
model = build_model(cfg)
print(type(model.backbone.bottom_up).__name__, sorted(model.backbone.output_shape()))
"""


def make_cfg(**isonet):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.ISONET.DEPTH = 18
    for key, value in isonet.items():
        cfg.MODEL.ISONET[key] = value
    return cfg


def build(cfg, name):
    cfg.MODEL.BACKBONE.NAME = name
    return build_backbone(cfg, ShapeSpec(channels=3))


def test_another_project_needs_the_import_and_the_name_only(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(OTHER_PROJECT)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == "ISONet ['p2', 'p3', 'p4', 'p5', 'p6']"
    assert "FREEZE_AT is 2 while MODEL.WEIGHTS is empty" in run.stderr


@pytest.mark.parametrize(
    ("features", "channels"), [(["res4"], [256]), (["res5"], [512]), (["stem", "linear"], [64, 7])]
)
def test_backbone_has_the_configured_features(features, channels):
    cfg = make_cfg(OUT_FEATURES=features)
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 7
    backbone = build(cfg, "build_isonet_backbone")
    assert [s.channels for s in backbone.output_shape().values()] == channels
    assert list(backbone(torch.randn(1, 3, 64, 64))) == features


def test_backbone_options_come_from_the_config():
    cfg = make_cfg(
        SRELU_INIT=-3.0, SRELU_LEARNABLE=False, SCALE_INIT=0.25, RES5_DILATION=2, OUT_FEATURES=["res5"]
    )
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    backbone = build(cfg, "build_isonet_backbone")
    assert backbone.output_shape()["res5"].stride == 16
    block = backbone.res3[0]
    assert block.scale.scale == 0.25
    assert (block.srelu.threshold == -3).all() and not block.srelu.threshold.requires_grad
    assert not backbone.stem.conv.weight.requires_grad
    plain = build(make_cfg(RESIDUAL=False), "build_isonet_backbone")
    assert all(b.scale is None for b in plain.modules() if isinstance(b, IsoBlock))


@pytest.mark.parametrize(
    ("name", "levels", "strides"),
    [
        ("build_isonet_fpn_backbone", ["p2", "p3", "p4", "p5", "p6"], [4, 8, 16, 32, 64]),
        ("build_retinanet_isonet_fpn_backbone", ["p3", "p4", "p5", "p6", "p7"], [8, 16, 32, 64, 128]),
    ],
)
def test_fpn_levels(name, levels, strides):
    backbone = build(make_cfg(), name)
    assert isinstance(backbone.bottom_up, ISONet)
    out = backbone(torch.randn(1, 3, 128, 128))
    assert list(out) == levels
    for level, stride in zip(levels, strides, strict=True):
        assert backbone.output_shape()[level].stride == stride
        assert out[level].shape == (1, 256, 128 // stride, 128 // stride)
    assert not [m for m in backbone.modules() if "Norm" in type(m).__name__]


def test_fpn_pools_whatever_its_last_feature_is():
    cfg = make_cfg(DEPTH=8, STEM="cifar")
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    backbone = build(cfg, "build_isonet_fpn_backbone")
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    assert strides == {"p1": 2, "p2": 4, "p3": 8}
    assert backbone(torch.rand(1, 3, 32, 48))["p3"].shape[2:] == (4, 6)


def test_retinanet_fpn_takes_its_top_from_the_last_feature():
    cfg = make_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    backbone = build(cfg, "build_retinanet_isonet_fpn_backbone")
    assert list(backbone(torch.randn(1, 3, 64, 64))) == ["p3", "p4", "p5", "p6"]


def test_unknown_feature_in_the_config_is_named():
    with pytest.raises(ValueError, match="'res7' unknown"):
        build(make_cfg(OUT_FEATURES=["res7"]), "build_isonet_backbone")


@pytest.mark.parametrize("key", ["WHITEN", "CENTRED"])
def test_a_switch_is_a_bool_or_none(key):
    message = rf"{key.lower()} \(MODEL\.ISONET\.{key}\) must be True, False or None, got 'no'"
    with pytest.raises(ValueError, match=message):
        build(make_cfg(**{key: "no"}), "build_isonet_backbone")


def test_a_scale_init_that_is_no_number_is_named():
    with pytest.raises(ValueError, match=r"MODEL\.ISONET\.SCALE_INIT\) must be a number or None, got 'none'"):
        build(make_cfg(SCALE_INIT="none"), "build_isonet_backbone")


def test_a_backbone_isometrized_by_its_name():
    cfg = make_cfg(SIGNAL="scaled")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.OUT_FEATURES = 8, "BN", ["res4"]
    cfg.MODEL.ISOMETRIZED.BACKBONE, cfg.MODEL.ISOMETRIZED.IMAGE_SIZE = "build_cifar_resnet_backbone", 32
    backbone = build(cfg, "build_isometrized_backbone")
    features = backbone(torch.randn(4, 3, 32, 32))["res4"]
    assert features.shape == (4, 64, 8, 8) and backbone.output_shape()["res4"].stride == 4
    assert not [m for m in backbone.modules() if "Norm" in type(m).__name__]
    assert sum(isinstance(m, SReLU) for m in backbone.modules()) == 7
    assert 0.38 < features.square().mean() < 1.52  # 0.76 is what an SReLU leaves of 1
    for name in ("build_nothing", "build_isometrized_backbone"):
        cfg.MODEL.ISOMETRIZED.BACKBONE = name
        with pytest.raises(ValueError, match=f"another registered backbone, got '{name}'"):
            build(cfg, "build_isometrized_backbone")
    cfg = make_cfg(SIGNAL="scaled")
    cfg.MODEL.ISOMETRIZED.BACKBONE = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res4", "res5"]
    for size in (0, 16, 225):
        cfg.MODEL.ISOMETRIZED.IMAGE_SIZE = size
        message = rf"IMAGE_SIZE must be a positive multiple of 32 for build_resnet_fpn_backbone, got {size}$"
        with pytest.raises(ValueError, match=message):
            build(cfg, "build_isometrized_backbone")


def detector(norm="BN"):
    """Faster R-CNN with FPN over Detectron2's ResNet-18, of which nothing is frozen."""
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, norm, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    return cfg, build_model(cfg)


@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_an_isometrized_backbone_of_detectron2_trains_in_a_detector(norm):
    cfg, model = detector(norm)
    old = model.backbone
    model.backbone, report = isometrize(old, torch.randn(1, 3, 64, 64))
    assert isinstance(model.backbone, Backbone) and model.backbone.output_shape() == old.output_shape()
    assert model.backbone.size_divisibility == old.size_divisibility == 32
    assert model.backbone.padding_constraints == old.padding_constraints
    assert len(report.norms) == 20 and len(report.scales) == 8 and len(report.activations) == 17
    # the two convolutions of each block, three projections, the stem; laterals of FPN; its outputs are kept
    assert len(report.layers) == 16 + 3 + 1 + 4 and len(report.kept) == 4 and len(report.merges) == 3
    # the second pass has another size
    target = Instances(
        (64, 96), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])), gt_classes=torch.tensor([3])
    )
    with EventStorage():
        losses = model([{"image": torch.rand(3, 64, 96), "instances": target}])
    sum(losses.values()).backward()
    isometric = [m for m in model.backbone.modules() if isinstance(m, (ScaledConv2d, SReLU, SharedScale))]
    assert all(p.grad is not None for m in isometric for p in m.parameters())
    penalty = ModelPenalty(model, 1e-4, mode="spectral")
    assert list(penalty.layers) == [f"backbone.net.{name}" for name in report.layers]
    assert penalty()[0] < 1e-3
    optimizer = build_optimizer(cfg, model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    scale = model.backbone.net.get_submodule(report.scales[0]).scale
    assert rates[id(scale)] == pytest.approx(cfg.SOLVER.BASE_LR * 0.1)
    optimizer.step()
    twin = copy.deepcopy(model.backbone).eval()
    image = torch.rand(1, 3, 64, 64)
    assert all(twin(image)[name].equal(x) for name, x in model.backbone.eval()(image).items())
