import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from torch import nn

from iso_d2.isometry import SReLU
from iso_d2.modeling import IsoBlock, ISONet
from iso_d2.modeling.signal import Signal

# REFERENCE: counted on the networks that the paper's authors published, 1000 classes.
PUBLISHED_PARAMETERS = {
    (18, False): 11_511_784,
    (34, False): 21_616_232,
    (50, False): 22_757_736,
    (18, True): 11_683_824,
    (34, True): 21_788_280,
    (50, True): 25_526_648,
    (101, True): 44_492_681,
}


@pytest.mark.parametrize(("depth", "residual"), PUBLISHED_PARAMETERS)
def test_parameter_count_is_the_published_one(depth, residual):
    with torch.device("meta"):
        net = ISONet(depth, residual, num_classes=1000)
    assert sum(p.numel() for p in net.parameters()) == PUBLISHED_PARAMETERS[depth, residual]


def test_no_normalization_and_no_convolution_bias():
    net = ISONet(50, True, num_classes=10)
    assert not [m for m in net.modules() if "Norm" in type(m).__name__]
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("bottleneck", [None, 4])
def test_residual_block_starts_as_the_identity_above_b(bottleneck):
    block = IsoBlock(16, 16, 1, True, bottleneck_channels=bottleneck, signal=Signal(srelu_init=-0.5))
    x = torch.randn(2, 16, 7, 9)
    assert torch.equal(block(x), x.clamp(min=-0.5))


def test_plain_block_starts_as_the_identity_above_b():
    block = IsoBlock(16, 16, 1, False, signal=Signal(srelu_init=-0.5))
    x = torch.randn(2, 16, 7, 9)
    assert torch.equal(block(x), x.clamp(min=-0.5))


def test_plain_bottleneck_block_starts_with_as_many_channels_as_its_neck():
    block = IsoBlock(16, 16, 1, False, bottleneck_channels=4)
    x = torch.rand(2, 16, 7, 9)
    out = block(x)
    assert torch.equal(out[:, :4], x[:, :4])
    assert not out[:, 4:].any()


@pytest.mark.parametrize("residual", [True, False])
def test_stride_2_block_keeps_every_second_pixel_and_adds_zero_channels(residual):
    block = IsoBlock(8, 16, 2, residual)
    x = torch.randn(2, 8, 64, 64).clamp(min=-1)
    out = block(x)
    assert torch.equal(out[:, :8], x[:, :, ::2, ::2])
    assert not out[:, 8:].any()
    assert (out.norm() / x.norm()).item() == pytest.approx(0.5, rel=0.05)


def _norm_ratios(net, image):
    """Norm of res5 over that of the stem's output, and of a random cotangent pulled back over itself."""
    out = net(image)
    cotangent = torch.randn_like(out["res5"])
    (gradient,) = torch.autograd.grad(out["res5"], out["stem"], cotangent)
    return (out["res5"].norm() / out["stem"].norm()).item(), (gradient.norm() / cotangent.norm()).item()


def _relu_resnet_without_norm(blocks):
    """Detectron2's ResNet (Kaiming initialisation, ReLU) with no normalization layer."""
    stages, channels = [], 64
    for i, num_blocks in enumerate(blocks):
        out = 256 * 2**i
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                num_blocks,
                stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=channels,
                out_channels=out,
                bottleneck_channels=out // 4,
                norm="",
                stride_in_1x1=False,
            )
        )
        channels = out
    return ResNet(BasicStem(3, 64, norm=""), stages, out_features=["stem", "res5"])


@pytest.mark.parametrize(("depth", "blocks", "growth"), [(50, (3, 4, 6, 3), 10), (101, (3, 4, 23, 3), 1000)])
def test_signal_and_gradient_keep_their_norm_where_a_relu_net_explodes(depth, blocks, growth):
    torch.manual_seed(0)
    image = torch.randn(1, 3, 128, 128)
    signal, gradient = _norm_ratios(ISONet(depth, True, out_features=["stem", "res5"]), image)
    # Each of three stride-2 projections keeps a quarter of the pixels: half the norm. Of a random
    # cotangent only the 64 of 2048 channels that come from the stem are pulled back.
    assert signal == pytest.approx(1 / 8, rel=0.2)
    assert gradient == pytest.approx((64 / 2048) ** 0.5, rel=0.05)
    signal, gradient = _norm_ratios(_relu_resnet_without_norm(blocks), image)
    assert signal > growth
    assert gradient > growth


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_output_shape_is_what_comes_out(depth, residual, size):
    features = ["stem", "res2", "res3", "res4", "res5"]
    net = ISONet(depth, residual, out_features=features)
    out = net(torch.randn(1, 3, *size))
    strides = [4, 4, 8, 16, 32]
    assert list(out) == features
    for (name, shape), stride in zip(net.output_shape().items(), strides, strict=True):
        assert isinstance(shape, ShapeSpec)
        assert shape.stride == stride
        assert out[name].shape == (1, shape.channels, *(-(-s // stride) for s in size))
    assert net.size_divisibility == 0


def test_dilated_res5_stays_at_stride_16():
    net = ISONet(18, True, out_features=["res4", "res5"], res5_dilation=2)
    out = net(torch.randn(1, 3, 64, 96))
    assert out["res5"].shape[2:] == out["res4"].shape[2:] == (4, 6)
    assert net.output_shape()["res5"].stride == 16
    assert {
        m.dilation for m in net.res5.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    } == {(2, 2)}


@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_nets_are_narrow_and_end_at_res4(depth):
    net = ISONet(depth, True, stem="cifar", out_features=["res4"])
    assert net(torch.randn(2, 3, 32, 32))["res4"].shape == (2, 64, 8, 8)
    # 6n+2: the stem, two convolutions in each of 3n blocks, and the classifier.
    layers = [m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n]
    assert len(layers) + 1 == depth


def test_four_stage_net_with_cifar_stem():
    net = ISONet(18, True, stem="cifar", num_classes=10)
    assert net(torch.randn(2, 3, 32, 32))["linear"].shape == (2, 10)
    assert net.output_shape()["linear"].channels == 10
    assert ISONet(18, True, stem="cifar").output_shape()["res5"].stride == 8


def test_only_needed_stages_are_built():
    net = ISONet(50, True, out_features=["res3"])
    assert not [n for n, _ in net.named_parameters() if n.startswith(("res4", "res5", "linear"))]


def test_freeze_at():
    net = ISONet(18, True, out_features=["res5"], freeze_at=2)
    trained = {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad}
    assert trained == {"res3", "res4", "res5"}
    assert all(p.requires_grad for p in ISONet(18, True).parameters())


def test_srelu_options_reach_every_srelu():
    net = ISONet(18, False, srelu_init=-2.0, srelu_learnable=False)
    srelus = [m for m in net.modules() if isinstance(m, SReLU)]
    assert len(srelus) == 1 + 8 * 2
    assert all((m.threshold == -2).all() and not m.threshold.requires_grad for m in srelus)


def test_dropout_is_before_the_linear_layer():
    torch.manual_seed(0)
    net = ISONet(18, True, num_classes=4, dropout=0.5)
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(net(image)["linear"], net(image)["linear"])
    net.eval()
    assert torch.equal(net(image)["linear"], net(image)["linear"])


def test_traces():
    net = ISONet(18, True, out_features=["res5"]).eval()
    traced = torch.jit.trace(net, torch.randn(1, 3, 64, 64), strict=False)
    image = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(traced(image)["res5"], net(image)["res5"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 51}, r"depth must be one of 18, 34, 50, 101, 152 \(or 6n\+2 with stem='cifar'\), got 51"),
        ({"depth": 20}, "got 20 with stem='imagenet'"),
        ({"depth": 18, "stem": "deep"}, "stem must be 'imagenet' or 'cifar', got 'deep'"),
        (
            {"depth": 18, "out_features": ["res6"]},
            "some of stem, res2, res3, res4, res5, linear.*'res6' unknown",
        ),
        ({"depth": 20, "stem": "cifar", "out_features": ["res5"]}, "some of stem, res2, res3, res4, linear"),
        ({"depth": 18, "out_features": []}, "out_features must be some of"),
        ({"depth": 18, "out_features": ["linear"]}, "num_classes together with 'linear'"),
        ({"depth": 18, "out_features": ["res5"], "num_classes": 10}, "num_classes together with 'linear'"),
        ({"depth": 18, "res5_dilation": 4}, "res5_dilation must be 1 or 2, got 4"),
    ],
)
def test_errors_say_what_is_accepted(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ISONet(residual=True, **kwargs)
