import subprocess
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_roi_heads

from iso_d2.config import add_iso_config
from iso_d2.modeling import IsoBlock, ISONet

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


def test_c4_checkpoints_the_res5_of_its_head():
    cfg = make_cfg(CHECKPOINT_STAGES=["res3", "res5"])
    cfg.MODEL.ROI_HEADS.NAME = "ISORes5ROIHeads"
    backbone = build(cfg, "build_isonet_backbone")
    head = build_roi_heads(cfg, backbone.output_shape())
    assert [backbone.res2.checkpointed, backbone.res3.checkpointed] == [False, True]
    assert head.res5.checkpointed
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match="checkpoint_stages must be some of res2, res3, res4, which"):
        build(cfg, "build_isonet_backbone")


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


def test_retinanet_fpn_takes_its_top_from_the_last_feature():
    cfg = make_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    backbone = build(cfg, "build_retinanet_isonet_fpn_backbone")
    assert list(backbone(torch.randn(1, 3, 64, 64))) == ["p3", "p4", "p5", "p6"]


def test_unknown_feature_in_the_config_is_named():
    with pytest.raises(ValueError, match="'res7' unknown"):
        build(make_cfg(OUT_FEATURES=["res7"]), "build_isonet_backbone")


def test_c4_heads_hold_res5_of_isonet_blocks():
    cfg = make_cfg(DEPTH=50)
    cfg.MODEL.ROI_HEADS.NAME = "ISORes5ROIHeads"
    heads = build_roi_heads(cfg, {"res4": ShapeSpec(channels=1024, stride=16)})
    whole = ISONet(50, True, out_features=["res5"]).res5.state_dict()
    assert {k: v.shape for k, v in heads.res5.state_dict().items()} == {k: v.shape for k, v in whole.items()}
    assert heads.res5(torch.randn(2, 1024, 14, 14)).shape == (2, 2048, 7, 7)


def test_c4_heads_have_the_backbone_s_initialisation():
    """Kaiming normal by fan-out, variance 2 / (9 * 512), where delta initialisation is off."""
    cfg = make_cfg(DELTA_INIT=False)
    cfg.MODEL.ROI_HEADS.NAME = "ISORes5ROIHeads"
    heads = build_roi_heads(cfg, {"res4": ShapeSpec(channels=256, stride=16)})
    variances = [block.branch.conv2.weight.var().item() for block in heads.res5]
    assert variances == pytest.approx([2 / (9 * 512)] * 2, rel=0.02)


@pytest.mark.parametrize("key", ["WHITEN", "CENTRED"])
def test_a_switch_is_a_bool_or_none(key):
    message = rf"{key.lower()} \(MODEL\.ISONET\.{key}\) must be True, False or None, got 'no'"
    with pytest.raises(ValueError, match=message):
        build(make_cfg(**{key: "no"}), "build_isonet_backbone")


def test_c4_heads_refuse_dilation():
    cfg = make_cfg(RES5_DILATION=2)
    cfg.MODEL.ROI_HEADS.NAME = "ISORes5ROIHeads"
    with pytest.raises(ValueError, match=r"set MODEL\.ISONET\.RES5_DILATION 1, got 2"):
        build_roi_heads(cfg, {"res4": ShapeSpec(channels=256, stride=16)})


def test_c4_heads_refuse_a_net_without_res5():
    cfg = make_cfg(DEPTH=20, STEM="cifar")
    cfg.MODEL.ROI_HEADS.NAME = "ISORes5ROIHeads"
    with pytest.raises(ValueError, match=r"DEPTH 20, which ends at res4"):
        build_roi_heads(cfg, {"res4": ShapeSpec(channels=64, stride=4)})
