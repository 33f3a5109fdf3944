import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from iso_d2.config import add_iso_config
from iso_d2.modeling import ISONet

IMAGE = ShapeSpec(channels=3)


def c4_cfg(**isonet):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_isonet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.ROI_HEADS.NAME = "ISORes5ROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ISONET.DEPTH = 18
    for key, value in isonet.items():
        cfg.MODEL.ISONET[key] = value
    return cfg


def test_weights_of_a_whole_net_fill_backbone_and_heads():
    """Gains, metrics and scales of channels among them: res5 of both gives the same features."""
    switches = dict.fromkeys(("METRIC", "CHANNEL_SCALES", "SRELU_GAIN"), True)
    options = {"SIGNAL": "scaled", "INIT": "delta", **switches}
    cfg = c4_cfg(**options)
    whole = ISONet(18, True, out_features=["res5"], **{k.lower(): v for k, v in options.items()}).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    backbone = build_backbone(cfg, IMAGE).eval()
    heads = build_roi_heads(cfg, backbone.output_shape()).eval()
    state = whole.state_dict()
    backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("res5.")})
    heads.res5.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("res5.")})
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(heads.res5(backbone(x)["res4"]), whole(x)["res5"])


def test_losses_reach_res5():
    cfg = c4_cfg()
    heads = build_roi_heads(cfg, {"res4": ShapeSpec(channels=256, stride=16)}).train()
    boxes = Boxes(torch.tensor([[4.0, 4, 40, 40]]))
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    proposal = Instances((64, 64), proposal_boxes=boxes, objectness_logits=torch.ones(1))
    target = Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor([2]))
    with EventStorage():
        _, losses = heads(images, {"res4": torch.randn(1, 256, 4, 4)}, [proposal], [target])
    assert sorted(losses) == ["loss_box_reg", "loss_cls"]
    sum(losses.values()).backward()
    assert all(block.branch.conv1.weight.grad is not None for block in heads.res5)
    assert heads.box_predictor.cls_score.weight.shape == (5, 512)


def test_backbone_and_heads_share_the_checkpointed_stages():
    cfg = c4_cfg(CHECKPOINT_STAGES=["res3", "res5"])
    backbone = build_backbone(cfg, IMAGE)
    head = build_roi_heads(cfg, backbone.output_shape())
    assert [backbone.res2.checkpointed, backbone.res3.checkpointed] == [False, True]
    assert head.res5.checkpointed
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match="checkpoint_stages must be some of res2, res3, res4, which"):
        build_backbone(cfg, IMAGE)


def test_res5_has_the_blocks_of_isonet():
    cfg = c4_cfg(DEPTH=50)
    heads = build_roi_heads(cfg, {"res4": ShapeSpec(channels=1024, stride=16)})
    whole = ISONet(50, True, out_features=["res5"]).res5.state_dict()
    assert {k: v.shape for k, v in heads.res5.state_dict().items()} == {k: v.shape for k, v in whole.items()}
    assert heads.res5(torch.randn(2, 1024, 14, 14)).shape == (2, 2048, 7, 7)


def test_heads_have_the_backbone_s_initialisation():
    """Kaiming normal by fan-out, variance 2 / (9 * 512), where delta initialisation is off."""
    cfg = c4_cfg(DELTA_INIT=False)
    heads = build_roi_heads(cfg, {"res4": ShapeSpec(channels=256, stride=16)})
    variances = [block.branch.conv2.weight.var().item() for block in heads.res5]
    assert variances == pytest.approx([2 / (9 * 512)] * 2, rel=0.02)


def test_heads_refuse_dilation():
    cfg = c4_cfg(RES5_DILATION=2)
    with pytest.raises(ValueError, match=r"set MODEL\.ISONET\.RES5_DILATION 1, got 2"):
        build_roi_heads(cfg, {"res4": ShapeSpec(channels=256, stride=16)})


def test_heads_refuse_a_net_without_res5():
    cfg = c4_cfg(DEPTH=20, STEM="cifar")
    with pytest.raises(ValueError, match=r"DEPTH 20, which ends at res4"):
        build_roi_heads(cfg, {"res4": ShapeSpec(channels=64, stride=4)})
