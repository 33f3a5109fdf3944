import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from engine_toys import ToyModel, tiny_resnet
from torch import nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from iso_d2.isometry import SharedScale, delta_init_, delta_init_model_, find_convolutions
from iso_d2.modeling import ISONet


def is_delta(conv):
    """Output i copies input i at the centre tap, and there is nothing else."""
    expected = torch.zeros_like(conv.weight)
    centre = conv.kernel_size[0] // 2
    for i in range(min(expected.shape[:2])):
        expected[i, i, centre, centre] = 1
    return torch.equal(conv.weight, expected)


@torch.no_grad()
def test_resnet101_without_norm_keeps_its_signal():
    """At the start the residual blocks are their shortcuts, of which none adds energy."""
    torch.manual_seed(0)
    stages = ResNet.make_default_stages(101, norm="")
    net = ResNet(BasicStem(norm=""), stages, out_features=["stem", "res2", "res5"])
    model = ToyModel(net)
    delta_init_model_(model, ["backbone"])
    image = torch.randn(1, 3, 64, 64)
    features = model.backbone(image)
    assert torch.equal(features["res2"][:, :64], features["stem"])
    assert not features["res2"][:, 64:].any()
    assert 0 < features["res5"].norm() <= features["stem"].norm()

    # Why the last convolutions must be 0: with a delta there each of the 33 blocks doubles the signal.
    for stage in stages:
        for block in stage:
            delta_init_(block.conv3.weight)
    assert model.backbone(image)["res5"].max() > 0.5 * 2**33 * features["res5"].max()


def test_what_becomes_of_each_layer():
    model = ToyModel(tiny_resnet())
    model.head = nn.Conv2d(8, 4, 3)
    model.up = nn.ConvTranspose2d(8, 4, 3)
    model.other = nn.Conv2d(8, 4, 3)
    stem, other = model.backbone.stem.conv1.weight.clone(), model.other.weight.clone()
    fates = delta_init_model_(model, ["backbone", "head", "up"])
    block = model.backbone.res3[0]
    assert is_delta(block.conv1) and is_delta(block.shortcut) and is_delta(model.head) and is_delta(model.up)
    assert not block.conv2.weight.any()
    assert not model.head.bias.any() and not model.up.bias.any()
    assert torch.equal(model.backbone.stem.conv1.weight, stem)
    assert torch.equal(model.other.weight, other)
    by_fate = {fate: [name for name in fates if fates[name] == fate] for fate in ("delta", "zero", "kept")}
    assert by_fate == {
        "delta": [
            "backbone.res2.0.conv1",
            "backbone.res2.1.conv1",
            "backbone.res3.0.shortcut",
            "backbone.res3.0.conv1",
            "head",
            "up",
        ],
        "zero": ["backbone.res2.0.conv2", "backbone.res2.1.conv2", "backbone.res3.0.conv2"],
        "kept": ["backbone.stem.conv1"],
    }


def test_torchvision_block():
    block = TorchvisionBlock(4, 4, norm_layer=lambda channels: nn.Identity())
    delta_init_model_(nn.ModuleDict({"block": block}), "block")
    assert is_delta(block.conv1)
    assert not block.conv2.weight.any()


def test_no_zero_before_a_norm_layer():
    net = tiny_resnet(norm="BN")
    delta_init_model_(net, "res3")
    assert is_delta(net.res3[0].conv2)


class ScaledBlock(nn.Module):
    """A residual block in ResNet's style with a scale that starts at 0."""

    def __init__(self):
        super().__init__()
        self.shortcut = None
        self.conv1 = nn.Conv2d(4, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.scale = SharedScale()


def test_no_zero_behind_a_scale():
    block = ScaledBlock()
    net = ISONet(8, residual=True, stem="cifar")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    delta_init_model_(nn.ModuleList([block, net]), ["0", "1"])
    assert is_delta(block.conv2)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 9 and all(map(is_delta, convs))
    assert net.res2[0].scale.scale != 0  # only convolutions are touched


class Stem(nn.Module):
    """Three convolutions in a row without a shortcut, as in DeepLab's stem."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(4, 4, 3) for _ in range(3))


def test_no_zero_without_a_shortcut():
    stem = Stem()
    delta_init_model_(stem, "*")
    assert is_delta(stem.conv3)


def test_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match="'neck' matches no convolution"):
        delta_init_model_(tiny_resnet(), ["neck"])


def test_offsets_of_deformable_convolutions_are_no_such_convolutions():
    block = nn.ModuleDict({"conv2_offset": nn.Conv2d(4, 18, 3), "conv2": nn.ConvTranspose2d(4, 4, 3)})
    assert list(find_convolutions(block)) == ["conv2"]
