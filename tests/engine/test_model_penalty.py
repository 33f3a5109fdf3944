"""Which layers of a model are penalised, and the penalty divided among the processes of a training."""

import re

import engine_toys
import pytest
import torch
from detectron2.engine import launch
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from engine_toys import ToyModel, tiny_resnet
from torch import nn

from iso_d2.engine import ModelPenalty, OrthogonalityLossHook, penalised_layers
from iso_d2.engine.model_penalty import _share
from iso_d2.isometry import isometrize, orthogonality_multiply_adds
from iso_d2.modeling import ISONet, UNet

RESNET_LAYERS = [
    "backbone.res2.0.conv1",
    "backbone.res2.0.conv2",
    "backbone.res2.1.conv1",
    "backbone.res2.1.conv2",
    "backbone.res3.0.shortcut",
    "backbone.res3.0.conv1",
    "backbone.res3.0.conv2",
]


def penalised(model, **kwargs):
    return list(penalised_layers(model, **kwargs))


def test_default_leaves_out_the_layers_of_an_fpn():
    model = ToyModel(None)
    model.backbone = FPN(tiny_resnet(), ["res3"], 8, top_block=LastLevelP6P7(8, 8, "res3"))
    model.head = nn.Conv2d(8, 8, 3)
    expected = [name.replace("backbone.", "backbone.bottom_up.") for name in RESNET_LAYERS]
    assert penalised(model) == expected


def test_default_leaves_out_7x7_kernels_and_3_channel_inputs():
    model = ToyModel(tiny_resnet())
    model.backbone.wide = nn.Conv2d(4, 4, 7)
    model.backbone.first = nn.Conv2d(3, 4, 3)
    model.backbone.other = nn.Conv2d(4, 4, 5)
    assert penalised(model) == [*RESNET_LAYERS, "backbone.other"]


class TwoParts(ToyModel):
    """An ISONet as backbone, blocks of another one in the head, and layers that are neither."""

    def __init__(self):
        super().__init__(ISONet(8, residual=True, stem="cifar", out_features=["res4"]))
        self.rpn_head = nn.Conv2d(64, 8, 3)
        self.roi_heads = nn.Module()
        self.roi_heads.res5 = ISONet(8, residual=True, stem="cifar").res3


def test_default_takes_isonet_blocks_wherever_they_are():
    names = penalised(TwoParts())
    parts = {name.split(".")[0] for name in names}
    assert parts == {"backbone", "roi_heads"}
    # 6n + 2 with n = 1: 3 blocks of 2 convolutions and 2 projections; the stem sees 3 channels.
    assert len(names) == (3 * 2 + 2) + (2 + 1)


def test_include_and_exclude():
    model = ToyModel(tiny_resnet())
    assert penalised(model, include=["backbone.stem", "*.shortcut"]) == [
        "backbone.stem.conv1",
        "backbone.res3.0.shortcut",
    ]
    assert penalised(model, include=["backbone.res2"]) == RESNET_LAYERS[:4]
    assert penalised(model, exclude=["backbone.res[23].*.conv1", "backbone.res3"]) == [
        "backbone.res2.0.conv2",
        "backbone.res2.1.conv2",
    ]


def test_frozen_layers_are_left_out():
    model = ToyModel(tiny_resnet())
    model.backbone.freeze(2)  # stem and res2
    assert penalised(model) == RESNET_LAYERS[4:]


def test_pattern_that_matches_nothing():
    model = ToyModel(tiny_resnet())
    with pytest.raises(
        ValueError, match=r"'backbone\.res4' matches no convolution.*backbone\.res2, backbone\.res3"
    ):
        penalised(model, include=["backbone.res2", "backbone.res4"])
    with pytest.raises(ValueError, match=r"'\*\.bottom_up' matches no convolution"):
        penalised(model, exclude=["*.bottom_up"])


class NoBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 3, 1)


def test_model_without_backbone_needs_include():
    with pytest.raises(
        ValueError, match=r"NoBackbone has neither an ISONet, a UNet nor a module `backbone`.*include.*net"
    ):
        penalised(NoBackbone())
    assert penalised(NoBackbone(), include=["net"]) == ["net"]


def test_default_of_an_isometrized_network():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()
    network, _ = isometrize(
        nn.Sequential(*layers, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)), torch.randn(1, 3, 9, 9)
    )
    # neither the layer of one channel a group nor the output
    assert penalised(network) == ["0", "5"]
    assert penalised(nn.ModuleDict({"net": network, "backbone": nn.Conv2d(8, 8, 1)})) == ["net.0", "net.5"]
    assert ModelPenalty(network, 1.0, mode="exact")()[0] < 1


class UNetAndMore(nn.Module):
    """A UNet and one convolution beside it."""

    def __init__(self, **options):
        super().__init__()
        self.unet = UNet(base_channels=4, depth=3, **options)
        self.beside = nn.Conv2d(1, 1, 3)


@pytest.mark.parametrize("options", [{}, {"isometric": False, "norm": "BN"}])
def test_default_takes_a_unet_but_its_first_layer_and_its_output(options):
    blocks = ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]
    expected = {f"unet.{block}.conv{i}" for block in blocks for i in (1, 2)} | {"unet.ups.0", "unet.ups.1"}
    assert set(penalised(UNetAndMore(**options))) == expected - {"unet.encoder.0.conv1"}
    one_channel = UNetAndMore(in_channels=1, up="nearest", **options)
    assert set(penalised(one_channel)) == expected - {"unet.ups.0", "unet.ups.1"} | {
        "unet.ups.0.conv",
        "unet.ups.1.conv",
    }


@pytest.mark.parametrize("up_kernel", [2, 6])
def test_isometric_unet_starts_without_penalty(up_kernel):
    _, losses = ModelPenalty(UNetAndMore(up_kernel=up_kernel), 1.0, mode="exact")()
    assert losses.sum() < 1e-3


def test_in_a_training_loop_of_one_s_own():
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
        model[1].weight.copy_(torch.diag(torch.tensor([2.0, 1.0])).view(2, 2, 1, 1))
    loss, losses = ModelPenalty(model, 0.1, include=["*"])()
    # the Gram of the second is diag(4, 1): 1/2 (4 - 1)^2, whose gradient is 2 (4 - 1) 2
    assert losses.tolist() == pytest.approx([0, 4.5])
    assert loss.item() == pytest.approx(0.45)
    loss.backward()
    assert model[1].weight.grad.flatten().tolist() == pytest.approx([1.2, 0, 0, 0])


def test_wrapped_model():
    assert list(ModelPenalty(nn.DataParallel(ToyModel(tiny_resnet())), 0.1).layers) == RESNET_LAYERS


@pytest.mark.parametrize(("tensor_loss", "unused"), [(False, False), (True, False), (False, True)])
def test_two_processes_share_the_layers_and_train_as_one_does(tmp_path, tensor_loss, unused):
    """`unused`: with a layer whose only gradient is that of the penalty, in one process."""
    arguments = str(tmp_path), tensor_loss, unused
    launch(engine_toys.penalise_in_one_process, 2, dist_url="auto", args=arguments)
    first, second = (torch.load(tmp_path / f"penalised{rank}.pth") for rank in range(2))
    alone = engine_toys.penalised_training(
        engine_toys.toy_with_random_weights(tensor_loss, unused), OrthogonalityLossHook(0.1, log_period=1)
    )
    # every layer once, and neither process has them all
    assert sorted(first["layers"] + second["layers"]) == sorted(alone["layers"])
    assert first["layers"] and second["layers"]
    for name, weight in alone["weights"].items():
        for process in (first, second):
            # the steps are large: weights grow to 1e4, and small ones are rounded like large ones
            rounding = 1e-6 * weight.abs().max().item()
            torch.testing.assert_close(process["weights"][name], weight, rtol=1e-5, atol=rounding)
    assert set(first["written"]) == set(alone["written"])
    for name, value in alone["written"].items():
        if name == "loss_ortho" or name.startswith("ortho/"):
            assert first["written"][name] == pytest.approx(value, rel=1e-5)


def test_penalty_of_sharded_weights_and_optimizers(tmp_path):
    """Whole weights train as under DistributedDataParallel, sharded ones are refused."""
    launch(engine_toys.train_sharded, 2, dist_url="auto", args=(str(tmp_path),))
    found = torch.load(tmp_path / "sharded0.pth")
    start = list(engine_toys.isometric_toy().parameters())
    for name in ("ZeRO", "fully_shard, whole", "FSDP, whole"):
        for value, wanted, before in zip(found[name], found["DDP"], start, strict=True):
            change = (wanted - before).abs().max().item()
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-3 * change, msg=name)
    for name in ("fully_shard", "FSDP", "FSDP, original parameters"):
        assert re.search(r"weight of .*res2.* is sharded.*DistributedDataParallel", found[name]), name


def test_shares_are_even_and_the_same_in_every_process():
    torch.manual_seed(0)
    convs = {f"conv{i}": nn.Conv2d(4 + i, 4 + i, 3, bias=False) for i in range(12)}
    cost = {name: orthogonality_multiply_adds(conv) for name, conv in convs.items()}
    shares = [_share(convs, "paper", process, 3) for process in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(convs)
    loads = [sum(cost[name] for name in share) for share in shares]
    assert max(loads) < 1.1 * sum(cost.values()) / 3


def test_more_processes_than_layers():
    convs = {"conv": nn.Conv2d(2, 2, 1)}
    assert [len(_share(convs, "paper", process, 3)) for process in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("mode", ["paper", "spectral"])
def test_unknown_precision(mode):
    with pytest.raises(ValueError, match="precision must be 'float32' or 'tf32', got 'half'"):
        ModelPenalty(ToyModel(tiny_resnet()), 0.1, mode, precision="half")
