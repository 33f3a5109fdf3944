import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

import iso_d2  # noqa: F401  registers the builder


def build(depth, norm, out_features, freeze_at=0):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_cifar_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = out_features
    return build_backbone(cfg, ShapeSpec(channels=3))


# 18: torchvision's resnet18 has 11,689,512 with a 7x7 stem and 1000 classes; the stem is 7,680 smaller,
# the linear layer 513,000. 20: the paper's has 269,722 with 10 classes, 650 of them in the linear layer,
# and no projections: 2,560 weights and 192 of their norms.
@pytest.mark.parametrize(
    "depth, last, channels, stride, count",
    [(18, "res5", 512, 8, 11_689_512 - 7_680 - 513_000), (20, "res4", 64, 4, 269_722 - 650 + 2_752)],
)
def test_layout(depth, last, channels, stride, count):
    net = build(depth, "BN", [last])
    assert sum(p.numel() for p in net.parameters()) == count
    assert (net.output_shape()[last].channels, net.output_shape()[last].stride) == (channels, stride)
    assert net(torch.randn(1, 3, 32, 32))[last].shape == (1, channels, 32 // stride, 32 // stride)
    # The name counts the convolutions off the projections, and the linear layer.
    convs = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    assert len(convs) == depth - 1


def test_bottleneck_blocks():
    net = build(50, "BN", ["res5"])
    # torchvision's resnet50 without its linear layer, less the larger stem
    assert sum(p.numel() for p in net.parameters()) == 25_557_032 - 2_049_000 - 7_680


def test_without_norm_there_are_convolutions_only():
    net = build(20, "", ["res4"])
    assert all(name.endswith(".weight") and p.ndim == 4 for name, p in net.named_parameters())
    # Kaiming, not delta: a 3x3 kernel of 64 outputs has the deviation sqrt(2 / (9 * 64))
    assert net.res4[1].conv1.weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.05)


def test_group_norm_has_pairs_of_channels_in_narrow_layers_and_detectron2s_groups_in_others():
    def groups(net):
        return {(m.num_channels, m.num_groups) for m in net.modules() if isinstance(m, nn.GroupNorm)}

    net = build(20, "GN", ["res4"])
    assert groups(net) == {(16, 8), (32, 16), (64, 32)}
    assert net(torch.randn(1, 3, 32, 32))["res4"].shape == (1, 64, 8, 8)
    assert groups(build(18, "GN", ["res5"])) == {(width, 32) for width in (64, 128, 256, 512)}


def test_freezing():
    net = build(20, "BN", ["res4"], freeze_at=2)
    frozen = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert not any(p.requires_grad for p in net.stem.parameters())
    assert frozen == {"stem", "res2"}


def test_unknown_depth():
    with pytest.raises(ValueError, match=r"depth must be one of .*6n\+2.*got 21"):
        build(21, "BN", ["res4"])
