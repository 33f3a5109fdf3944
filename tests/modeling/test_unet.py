import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iso_d2.isometry import SReLU, orthogonality_losses
from iso_d2.modeling import UNet

UP_KINDS = [{"up_kernel": 2}, {"up_kernel": 6}, {"up": "nearest"}]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(**args):
    return UNet(**{"base_channels": 4, "depth": 3, **args})


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1), (3, 40), (31, 2)])
@pytest.mark.parametrize("options", [*UP_KINDS, {"isometric": False, "norm": "BN"}])
def test_any_size(size, options):
    net = small(in_channels=2, num_classes=5, **options).eval()
    assert net(torch.randn(2, 2, *size)).shape == (2, 5, *size)


def test_sizes_are_padded_by_zeros_and_cropped():
    net = small(num_classes=2)
    image = torch.randn(1, 3, 13, 10)
    padded = torch.zeros(1, 3, 16, 12)
    padded[:, :, :13, :10] = image
    assert torch.equal(net(image), net(padded)[:, :, :13, :10])


def counted(inputs, classes, base, depth, *, bias, up_bias, per_channel, up_kernel):
    """Parameters, level by level from below; `per_channel`: of the thresholds or the normalization."""

    def two_convolutions(c_in, c):
        return 9 * c_in * c + 9 * c * c + 2 * c * (bias + per_channel)

    total = base * classes + classes
    for level in range(depth):
        c = base * 2**level
        total += two_convolutions(c // 2 if level else inputs, c)
        if level < depth - 1:
            total += up_kernel**2 * 2 * c * c + up_bias * c + two_convolutions(2 * c, c)
    return total


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {"bias": 0, "up_bias": 0, "per_channel": 1, "up_kernel": 2}),
        ({"up_kernel": 6}, {"bias": 0, "up_bias": 0, "per_channel": 1, "up_kernel": 6}),
        ({"up": "nearest"}, {"bias": 0, "up_bias": 0, "per_channel": 1, "up_kernel": 3}),
        ({"isometric": False, "norm": "BN"}, {"bias": 0, "up_bias": 1, "per_channel": 2, "up_kernel": 2}),
        ({"isometric": False}, {"bias": 1, "up_bias": 1, "per_channel": 0, "up_kernel": 2}),
    ],
)
def test_parameter_count(options, expected):
    for inputs, classes, base, depth in [(3, 1, 64, 5), (1, 4, 6, 2), (2, 3, 5, 1)]:
        with torch.device("meta"):
            net = UNet(inputs, classes, base, depth, **options)
        assert sum(p.numel() for p in net.parameters()) == counted(inputs, classes, base, depth, **expected)


def test_what_each_kind_is_made_of():
    def kinds(net):
        return {type(m).__name__ for m in net.modules()}

    assert {"SReLU"} == kinds(small()) & {"SReLU", "ReLU", "BatchNorm2d", "GroupNorm"}
    assert {"ReLU"} == kinds(small(isometric=False)) & {"SReLU", "ReLU", "BatchNorm2d", "GroupNorm"}
    assert {"ReLU", "BatchNorm2d"} <= kinds(small(isometric=False, norm="BN"))
    assert {"ReLU", "GroupNorm"} <= kinds(small(isometric=False, norm="GN", base_channels=32))
    thresholds = [m.threshold for m in small(srelu_init=-0.5).modules() if isinstance(m, SReLU)]
    assert len(thresholds) == 2 * 3 + 2 * 2
    assert all((t == -0.5).all() and not t.requires_grad for t in thresholds)
    assert all(
        m.threshold.requires_grad for m in small(srelu_learnable=True).modules() if isinstance(m, SReLU)
    )


def seen_by(net, modules, image):
    """Input and output of each module."""
    seen = {}
    handles = [m.register_forward_hook(lambda m, i, o: seen.update({m: (i[0], o)})) for m in modules]
    net(image)
    for handle in handles:
        handle.remove()
    return [seen[m] for m in modules]


@pytest.mark.parametrize("base_channels", [3, 4, 8])
@pytest.mark.parametrize("up_kernel", [2, 6])
def test_signal_keeps_its_norm_at_the_start(base_channels, up_kernel):
    # nothing is below b = -1: the norm of the image is about 0.1 at each pixel
    net = small(base_channels=base_channels, up_kernel=up_kernel)
    image = 0.05 * torch.randn(2, 3, 16, 24)
    for entering, leaving in seen_by(net, [*net.encoder, *net.ups], image):
        torch.testing.assert_close(leaving.square().sum((1, 2, 3)), entering.square().sum((1, 2, 3)))


def test_max_pooling_between_the_levels():
    net = small()
    (_, above), (below, _) = seen_by(net, net.encoder[:2], torch.randn(2, 3, 8, 12))
    four = torch.stack([above[:, :, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)])
    assert torch.equal(below, four.amax(0))


@pytest.mark.parametrize("isometric, factor", [(True, 0.5), (False, 1.0)])
def test_nearest_repeats_each_pixel(isometric, factor):
    net = small(isometric=isometric, up="nearest")
    x = torch.randn(2, 16, 3, 5)
    ((repeated, _),) = seen_by(net.ups[0], [net.ups[0].conv], x)
    for dy in (0, 1):
        for dx in (0, 1):
            assert torch.equal(repeated[:, :, dy::2, dx::2], factor * x)
    assert (repeated.norm() / x.norm()).item() == pytest.approx(1 if isometric else 2)


@pytest.mark.parametrize("options", UP_KINDS)
def test_narrowing_blocks_lose_only_what_does_not_fit(options):
    """Their adjoint, from the output back, keeps the norm."""
    net = small(**options)
    for block in net.decoder:
        entering = torch.zeros(1, block.conv1.in_channels, 8, 8, requires_grad=True)
        leaving = block(entering)
        y = torch.randn_like(leaving)
        (back,) = torch.autograd.grad(leaving, entering, y)
        torch.testing.assert_close(back.norm(), y.norm())


@pytest.mark.parametrize("init", ["orthogonal", "delta"])
@pytest.mark.parametrize("up_kernel", [2, 6])
def test_up_convolution_as_a_matrix(init, up_kernel):
    """As a delta it keeps only the channels that it has room for, else its rows are orthonormal."""
    for up in small(init=init, up_kernel=up_kernel).ups:
        channels = up.in_channels
        basis = torch.eye(channels * 3 * 3).view(-1, channels, 3, 3)
        out = up(basis)
        assert out.shape[1:] == (channels // 2, 6, 6)
        gram = out.flatten(1) @ out.flatten(1).T
        expected = torch.eye(len(basis))
        if init == "delta":
            expected.diagonal().view(channels, 9)[channels // 2 :] = 0
        torch.testing.assert_close(gram, expected, atol=1e-5, rtol=0)


def test_delta_up_convolution_puts_a_pixel_on_the_upper_left_of_its_four():
    for up_kernel in (2, 6):
        up = small(init="delta", up_kernel=up_kernel).ups[0]
        x = torch.randn(1, up.in_channels, 3, 4)
        expected = torch.zeros(1, up.out_channels, 6, 8)
        expected[:, :, ::2, ::2] = x[:, : up.out_channels]
        torch.testing.assert_close(up(x), expected)


@pytest.mark.parametrize("init", ["orthogonal", "delta"])
@pytest.mark.parametrize("options", UP_KINDS)
def test_exact_penalty_at_the_start(init, options):
    net = UNet(base_channels=8, depth=4, init=init, **options)
    layers = [
        m
        for part in (net.encoder, net.ups, net.decoder)
        for m in part.modules()
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    assert len(layers) == 2 * 4 + 3 + 2 * 3
    total = orthogonality_losses(layers, mode="exact").sum().item()
    if init == "delta" and "up" not in options:
        # of 2 C rows only C are not 0, and each of the others is 1/2 away from orthonormal
        assert total == pytest.approx((8 + 16 + 32) / 2)
    else:
        assert total < 1e-3


def test_literal_delta_copies_the_image_and_drops_what_comes_from_below():
    net = small(init="delta", num_classes=2)
    image = torch.randn(1, 3, 16, 16).clamp(min=-1)
    copied = torch.cat([image, torch.zeros(1, 1, 16, 16)], dim=1)
    torch.testing.assert_close(net(image), F.conv2d(copied, net.output.weight, net.output.bias))


def live_channels(net, image, target):
    """For each level, up and down: its channels, how many vary, and how many have a gradient."""
    blocks = [*net.encoder, *net.ups, *net.decoder]
    outputs = []
    handles = [
        b.register_forward_hook(lambda m, i, o: (o.retain_grad(), outputs.append(o))[0]) for b in blocks
    ]
    F.binary_cross_entropy_with_logits(net(image), target).backward()
    for handle in handles:
        handle.remove()
    varying = [(o.amax((0, 2, 3)) > o.amin((0, 2, 3))).sum().item() for o in outputs]
    learning = [o.grad.abs().amax((0, 2, 3)).count_nonzero().item() for o in outputs]
    return [o.shape[1] for o in outputs], varying, learning


def trained(net, steps=20):
    image = torch.randn(2, 3, 32, 32)
    target = (image[:, :1] > 0.5).float()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9)
    start = live_channels(net, image, target)
    for _ in range(steps):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(net(image), target).backward()
        optimizer.step()
    return start, live_channels(net, image, target)


@pytest.mark.parametrize("options", UP_KINDS)
def test_every_channel_of_every_level_lives(options):
    for channels, varying, learning in trained(small(**options)):
        assert varying == channels
        assert learning == channels


def test_literal_delta_has_three_live_channels_and_wakes_only_the_width_of_the_first_level():
    net = UNet(base_channels=8, depth=3, init="delta")
    (channels, varying, learning), (_, varying_then, learning_then) = trained(net)
    assert varying == [3] * len(channels)
    # nothing reads what comes from below: only the first level, and the last behind it, learn
    assert learning == [8] + [0] * (len(channels) - 2) + [8]
    assert max(varying_then) == max(learning_then) == 8
    assert max(channels) == 32


@pytest.mark.parametrize("options", UP_KINDS[:2])
def test_plain_relu_keeps_the_variance_at_the_start(options):
    """He et al.: after a ReLU, weights of variance 2 / (inputs seen) keep the mean square."""
    net = small(base_channels=64, depth=2, isometric=False, **options)
    for conv in (net.encoder[1].conv2, net.ups[0], net.decoder[0].conv1):
        x = torch.randn(4, conv.in_channels, 16, 16).relu()
        inner = conv(x)[:, :, 4:-4, 4:-4]
        assert inner.square().mean().item() == pytest.approx(1, rel=0.15)
        assert not conv.bias.any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "BN"}, "isometric UNet has no normalization, got norm='BN'"),
        ({"init": "dirac"}, "init must be one of delta, orthogonal, random, None, got 'dirac'"),
        ({"up": "bilinear"}, "up must be one of transposed, nearest, got 'bilinear'"),
        ({"up_kernel": 4}, "up_kernel must be one of 2, 6, got 4"),
        ({"depth": 0}, "depth must be one of 1, .* got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("options", [{}, {"isometric": False, "norm": "BN"}])
def test_bfloat16_and_channels_last(options):
    net = small(**options).eval()
    image = torch.randn(2, 3, 16, 16)
    expected = net(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    assert logits.dtype == torch.bfloat16
    scale = math.sqrt(expected.square().mean().item())
    torch.testing.assert_close(logits.float(), expected, atol=0.1 * scale, rtol=0.05)


@pytest.mark.parametrize("size", ["in_channels", "num_classes", "base_channels"])
def test_sizes_below_one(size):
    with pytest.raises(ValueError, match=f"UNet {size} must be at least 1, got 0"):
        UNet(**{size: 0})
