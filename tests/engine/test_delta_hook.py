import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from engine_toys import ToyModel, tiny_resnet, toy_batches
from torch import nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from iso_d2.engine import DeltaInitHook
from iso_d2.isometry import SharedScale, delta_init_
from iso_d2.modeling import ISONet


def apply(model, *args, start=0, **kwargs):
    trainer = SimpleTrainer(model, toy_batches(), torch.optim.SGD(model.parameters(), lr=0.0))
    trainer.register_hooks([DeltaInitHook(*args, **kwargs)])
    trainer.train(start, start)
    return model


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
    model = apply(ToyModel(net), ["backbone"])
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


def test_what_becomes_of_each_layer(log):
    model = ToyModel(tiny_resnet())
    model.head = nn.Conv2d(8, 4, 3)
    model.up = nn.ConvTranspose2d(8, 4, 3)
    model.other = nn.Conv2d(8, 4, 3)
    stem, other = model.backbone.stem.conv1.weight.clone(), model.other.weight.clone()
    apply(model, ["backbone", "head", "up"])
    block = model.backbone.res3[0]
    assert is_delta(block.conv1) and is_delta(block.shortcut) and is_delta(model.head) and is_delta(model.up)
    assert not block.conv2.weight.any()
    assert not model.head.bias.any() and not model.up.bias.any()
    assert torch.equal(model.backbone.stem.conv1.weight, stem)
    assert torch.equal(model.other.weight, other)
    assert "Delta initialisation of 9 convolutions" in log.text
    assert "3 at the end of a residual branch are 0" in log.text
    assert "7x7 kernels left as they are: backbone.stem.conv1" in log.text


def test_torchvision_block():
    block = TorchvisionBlock(4, 4, norm_layer=lambda channels: nn.Identity())
    apply(ToyModel(nn.ModuleDict({"block": block})), ["backbone"])
    assert is_delta(block.conv1)
    assert not block.conv2.weight.any()


def test_no_zero_before_a_norm_layer():
    model = apply(ToyModel(tiny_resnet(norm="BN")), ["backbone"])
    assert is_delta(model.backbone.res3[0].conv2)


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
    model = apply(ToyModel(nn.ModuleList([block, net])), ["backbone"])
    assert is_delta(block.conv2)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 9 and all(map(is_delta, convs))
    assert model.backbone[1].res2[0].scale.scale != 0  # only convolutions are touched


class Stem(nn.Module):
    """Three convolutions in a row without a shortcut, as in DeepLab's stem."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(4, 4, 3) for _ in range(3))


def test_no_zero_without_a_shortcut():
    model = apply(ToyModel(Stem()), ["backbone"])
    assert is_delta(model.backbone.conv3)


@pytest.mark.parametrize(
    "kwargs, start, why",
    [({"weights_loaded": True}, 0, "weights were loaded"), ({}, 5, "the training was resumed")],
)
def test_loaded_weights_stay(kwargs, start, why, log):
    model = ToyModel(tiny_resnet())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply(model, ["backbone"], start=start, **kwargs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert f"No delta initialisation: {why}" in log.text


def test_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match="'neck' matches no convolution"):
        apply(ToyModel(tiny_resnet()), ["neck"])
