"""isometrize: what becomes of each operation of a network."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from isometrize_toys import Made, conv_norm, images, kinds, mean_square, resnet, watch
from torch import nn

from iso_d2.isometry import SharedScale, SReLU, isometrize, isometry_error
from iso_d2.isometry.model import NORM_LAYERS


def test_a_resnet_becomes_isometric_and_the_model_stays_as_it_is():
    model = resnet()
    before = copy.deepcopy(model.state_dict())
    network, report = isometrize(model, images())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert kinds(network, NORM_LAYERS + (nn.ReLU,)) == [] and len(report.norms) == 6
    # a ReLU that is called twice becomes two
    assert sorted(kinds(network, SReLU)) == ["1", "2.relu", "2.relu_1", "3.relu", "3.relu_1"]
    assert [network.get_submodule(n).threshold.shape[0] for n in report.activations] == [8, 8, 8, 16, 16]
    assert report.scales == kinds(network, SharedScale) == ["2.scale", "3.scale"]
    assert [network.get_submodule(n).scale.item() for n in report.scales] == pytest.approx([2**-0.5] * 2)
    # in place of what the normalizations add
    assert report.biases == list(report.layers) and len(report.layers) == 6
    assert all((network.get_submodule(name).bias == 0).all() for name in report.biases)
    assert report.kept == ["6"] and report.left == {} and report.merges == report.concatenations == []
    text = str(report)
    assert "norms (6)" in text and "  2.relu_1: relu" in text and "  6" in text


def test_layers_are_isometries_with_the_gain_of_shape_and_signal():
    network, _ = isometrize(resnet(), images(16, 3, 16, 16))
    stem, projection = network.get_submodule("0.0"), network.get_submodule("3.downsample.0")
    first = network.get_submodule("2.first.0")
    assert stem.gain == pytest.approx(math.sqrt(8 / 3), rel=0.03)  # reads the image, of mean square 1
    assert isometry_error(stem.weight.double(), 8) < 1e-5
    assert isometry_error(projection.weight.double(), 8, stride=2) < 1e-5
    reads = watch(network, "2.first.0", "input"), watch(network, "3.downsample.0", "input")
    network(images(16, 3, 16, 16, seed=1))
    assert first.gain == pytest.approx(1 / reads[0][0].std().item(), rel=0.03)  # centred, see below
    assert projection.gain == pytest.approx(math.sqrt(2 / mean_square(reads[1][0])), rel=0.03)
    # kernels of several taps that read an SReLU are centred
    assert first.centred and first.weight.mean(dim=(1, 2, 3)).abs().max() < 1e-6
    assert not stem.centred and not projection.centred
    linear = network.get_submodule("6")
    # an average over 8 * 8 pixels, in a net with residual sums
    assert linear.gain == pytest.approx(64**0.25) and linear.centred


def test_a_plain_net_has_the_whole_gain_of_an_average():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *head)
    network, _ = isometrize(model, images())
    assert network.get_submodule("5").gain == pytest.approx(16)
    weight = model[5].weight
    torch.testing.assert_close(network.get_submodule("5").weight, weight - weight.mean(1, keepdim=True))


def test_the_papers_signal_is_delta_kernels_and_nothing_else():
    network, report = isometrize(resnet(), images(), signal="paper")
    kernel = network.get_submodule("2.first.0").weight
    assert kernel[:, :, 1, 1].equal(torch.eye(8)) and kernel.sum() == 8
    assert {network.get_submodule(name).gain for name in report.layers} == {1.0} and report.biases == []
    assert all((network.get_submodule(name).threshold == -1).all() for name in report.activations)
    stem, block = watch(network, "1"), watch(network, "2.relu_1")
    network(images())
    torch.testing.assert_close(block[0], stem[0])  # the residual scales are 0
    assert "gain" not in str(list(network.state_dict()))
    seven = nn.Sequential(nn.Conv2d(3, 4, 7), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    network, _ = isometrize(seven, images(), signal="paper")
    assert network.get_submodule("0").weight.equal(seven[0].weight)  # as in the paper's code


def relu_in_place(x):
    F.relu_(x)  # nothing takes its result
    return x


@pytest.mark.parametrize(
    "act",
    [
        F.relu,
        torch.relu,
        lambda x: x.relu(),
        relu_in_place,
        lambda x: F.leaky_relu(x, 0.2, inplace=True),
        F.hardswish,
        nn.GELU(),
        nn.SiLU(),
        nn.ReLU6(inplace=True),
        torchvision.ops.Conv2dNormActivation(8, 8, 1, norm_layer=None, activation_layer=nn.Hardswish),
    ],
)
def test_each_kind_of_activation_becomes_an_srelu(act):
    made = Made(lambda net, x: net.end(net.act(net.b(net.act(net.a(x))))))
    made.act = act
    network, report = isometrize(made, images())
    assert len(report.activations) == len(kinds(network, SReLU)) == 2
    read = watch(network, "b", "input"), watch(network, "end", "input")
    network(images(seed=1)).sum().backward()
    assert all(x.min() == -1 for (x,) in read) and network.a.weight.grad.abs().sum() > 0


def channels_last(net, x):
    x = F.layer_norm(net.a(x).permute(0, 2, 3, 1), (8,))
    return net.end(F.gelu(net.linear(x)).permute(0, 3, 1, 2))


def test_linear_layers_of_pixels_are_isometries_and_their_activations_have_a_threshold_a_channel():
    linear = nn.Linear(8, 16)
    network, report = isometrize(Made(channels_last, linear=linear, end=nn.Conv2d(16, 2, 1)), images())
    assert report.norms and network.srelu.threshold.shape == (16,)
    torch.testing.assert_close(network.linear.weight.T @ network.linear.weight, torch.eye(8))
    seen = watch(network, "srelu", "input")
    network(images(seed=1))
    assert seen[0].shape == (4, 16, 16, 16) and mean_square(seen[0]) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8),
        nn.SyncBatchNorm(8),
        nn.LayerNorm((8, 16, 16)),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_every_normalization_of_images_goes(norm):
    network, report = isometrize(Made(lambda net, x: net.end(F.relu(net.n(net.a(x)))), n=norm), images())
    assert list(report.norms) == ["n"] and not hasattr(network, "n")


class OwnConv(nn.Conv2d):
    """Calls the function, pads by the size of its input, and normalizes: as in Detectron2 and timm."""

    def forward(self, x):
        assert x.dim() == 4
        padding = 1 if x.shape[-1] % 2 == 0 else 0
        x = F.conv2d(F.pad(x, [padding] * 4), self.weight, self.bias, self.stride, groups=self.groups)
        return F.batch_norm(x, None, None, training=True) if x.numel() else x


def test_convolutions_with_a_forward_of_their_own():
    network, report = isometrize(
        Made(lambda net, x: net.end(F.relu(net.own(x))), own=OwnConv(3, 8, 3)), images()
    )
    assert list(report.layers) == ["own"] and report.decisions == ["own"] and list(report.norms) == ["own"]
    assert network(images()).shape == (4, 2, 16, 16) and isometry_error(network.own.weight.double(), 8) < 1e-5


def depthwise(net, x):
    return net.end(F.relu(net.d(F.relu(net.a(x)))))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 3, 2, 1, groups=2),
        nn.Conv2d(8, 16, 2, 2),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2),
    ],
    ids=str,
)
def test_grouped_strided_and_transposed_layers_keep_the_mean_square(layer):
    end = nn.Conv2d(layer.out_channels, 2, 1)
    network, report = isometrize(Made(depthwise, d=layer, end=end), images(8, 3, 32, 32))
    seen = watch(network, "d")
    network(images(8, 3, 32, 32, seed=1))
    assert type(network.d).__name__ == f"Scaled{type(layer).__name__}" and "d" in report.layers
    assert mean_square(seen[0]) == pytest.approx(1, rel=0.15)


def pyramid(net, x):
    """Like FPN: what comes from above is the residual of nothing."""
    fine = net.relu(net.a(x))
    coarse = net.c(net.relu(net.b(F.max_pool2d(fine, 2))))
    return net.end(net.relu(net.lateral(fine) + F.interpolate(coarse, scale_factor=2)))


def three(net, x):
    x = net.relu(net.a(x))
    return net.end(
        net.relu(net.b(x) + net.c(x) + F.interpolate(net.lateral(F.max_pool2d(x, 2)), scale_factor=2))
    )


@pytest.mark.parametrize("function, terms", [(pyramid, 2), (three, 3)])
def test_the_terms_of_other_sums_have_equal_mean_squares(function, terms):
    network, report = isometrize(Made(function, lateral=nn.Conv2d(8, 8, 1)), images(8, 3, 32, 32))
    assert report.scales == [] and len(report.merges) == 1
    parts = [watch(network, name) for name, _ in network.named_children() if name.startswith("balance")]
    network(images(8, 3, 32, 32, seed=1))
    assert [mean_square(x) for (x,) in parts] == pytest.approx([1 / terms] * terms, rel=0.2)


def test_concatenated_parts_have_equal_mean_squares():
    def function(net, x):
        x = net.relu(net.a(x))
        return net.end(net.relu(torch.cat([x, net.b(x), F.avg_pool2d(x, 3, 1, 1)], dim=1)))

    network, report = isometrize(Made(function, end=nn.Conv2d(24, 2, 1)), images(8, 3, 32, 32))
    assert len(report.concatenations) == 1
    seen = watch(network, "relu_1", "input")
    network(images(8, 3, 32, 32, seed=1))
    assert [mean_square(x) for x in seen[0].chunk(3, dim=1)] == pytest.approx([1] * 3, rel=0.15)


def test_a_pooled_shortcut_and_a_scale_of_the_networks_own():
    class Scaled(Made):
        def __init__(self):
            super().__init__(None)
            self.gamma = nn.Parameter(torch.full((8, 1, 1), 1e-6))

        def forward(self, x):
            x = F.max_pool2d(self.relu(self.a(x)), 2)
            return self.end(self.relu(x + self.gamma * self.c(self.relu(self.b(x)))))

    network, report = isometrize(Scaled(), images(8, 3, 32, 32))
    assert report.scales == ["scale"] and network.scale.scale == 1 and (network.gamma == 1).all()
    seen = watch(network, "balance")
    network(images(8, 3, 32, 32, seed=1))
    assert mean_square(seen[0]) == pytest.approx(1, rel=0.1)


def test_gates_stay_as_they_are():
    gate = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), nn.Sigmoid()
    )
    made = Made(lambda net, x: net.end(net.relu(net.b((y := net.relu(net.a(x))) * net.gate(y)))), gate=gate)
    network, report = isometrize(made, images())
    assert isinstance(network.gate.get_submodule("2"), nn.ReLU) and len(report.activations) == 2
    assert all(torch.equal(x, gate.state_dict()[name]) for name, x in network.gate.state_dict().items())
    assert report.gates == [f"gate.{i}" for i in range(5)] and report.kept == ["end"]
    seen = watch(network, "b")
    network(images(seed=1))
    assert mean_square(seen[0]) == pytest.approx(1, rel=0.2)  # what the gate takes is made up for


def test_a_last_layer_with_a_normalization_is_not_one_of_the_output():
    _, report = isometrize(nn.Sequential(conv_norm(3, 8), nn.ReLU(), conv_norm(8, 8)), images())
    assert report.kept == [] and list(report.layers) == ["0.0", "2.0"]


def test_what_follows_an_activation_in_place_does_not_spoil_its_backward_pass():
    made = Made(lambda net, x: net.end(net.drop(net.relu(net.a(x)))), drop=nn.Dropout(inplace=True))
    network, _ = isometrize(made, images())
    network(images()).sum().backward()
    assert network.a.weight.grad.abs().sum() > 0
