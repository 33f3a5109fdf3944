"""isometrize: what it leaves or refuses, what its result can do, and networks of other packages."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from isometrize_toys import Made, images, kinds, mean_square, resnet, watch
from torch import nn

from iso_d2.isometry import SReLU, isometrize
from iso_d2.isometry.model import NORM_LAYERS


def test_a_sigmoid_at_the_end_is_no_gate():
    _, report = isometrize(Made(lambda net, x: net.end(net.relu(net.a(x))).sigmoid()), images())
    assert report.gates == [] and list(report.layers) == ["a"]


def test_what_cannot_be_isometric_is_named():
    def function(net, x):
        x = net.relu(net.a(x)).flatten(2).transpose(1, 2)
        x = net.lstm(net.norm(net.attention(x, x, x)[0]))[0]
        return F.normalize(x)

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    made = Made(function, attention=attention, norm=nn.LayerNorm(8), lstm=nn.LSTM(8, 8, batch_first=True))
    with pytest.warns(
        UserWarning, match=r"left as it was: .*attention \(MultiheadAttention\).*lstm \(LSTM\)"
    ):
        network, report = isometrize(made, images())
    assert list(report.left) == ["attention", "norm", "lstm", "normalize"] and list(report.layers) == ["a"]
    assert network.lstm.weight_ih_l0.equal(made.lstm.weight_ih_l0)


class Untraceable(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy()) if isinstance(x, torch.Tensor) else x.missing()


def test_a_module_that_cannot_be_traced_is_left_and_a_whole_network_is_refused():
    made = Made(lambda net, x: net.end(net.relu(net.a(net.odd(x)))), odd=Untraceable())
    with pytest.warns(UserWarning, match=r"left as it was: odd \(cannot be traced \(AttributeError"):
        network, _ = isometrize(made, images())
    assert network(images()).shape == (4, 2, 16, 16)
    with pytest.raises(
        ValueError, match=r"cannot trace Untraceable: AttributeError at .*test_isometrize.*missing"
    ):
        isometrize(Untraceable(), images())


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="signal must be paper or scaled, got 'loud'"):
        isometrize(resnet(), images(), signal="loud")
    with pytest.raises(ValueError, match="found no convolution in Sequential"):
        isometrize(nn.Sequential(nn.Flatten(), nn.Sigmoid()), images())


def test_dropout_follows_the_mode_and_other_differences_between_modes_are_named(recwarn):
    def function(net, x):
        return net.end(F.dropout(net.relu(net.a(x)), 0.5, net.training))

    network, _ = isometrize(Made(function).eval(), images())
    assert not network.training and torch.equal(network(images()), network(images()))
    assert not torch.equal(network.train()(images()), network(images())) and len(recwarn) == 0
    made = Made(
        lambda net, x: (net.end(y := net.relu(net.a(x))), net.b(y)) if net.training else net.end(net.a(x))
    )
    with pytest.warns(
        UserWarning, match="Made does something else in training than in evaluation.*does in train"
    ):
        isometrize(made, images())


class Optional(Made):
    def forward(self, x, scale=None, twice=False):
        x = self.relu(self.a(x if scale is None else scale * x))
        return self.end(2 * x if twice else x)


def test_arguments_that_are_not_in_the_example_keep_their_defaults():
    network, _ = isometrize(Optional(None), images())
    for twin in (network, pickle.loads(pickle.dumps(network))):
        assert twin(images()).equal(network(images()))
        with pytest.raises(TypeError, match="positional arguments"):
            twin(images(), images())
    network, _ = isometrize(Optional(None), (images(), images()))
    assert not network(images(), images()).equal(network(images(), images(seed=1)))


def test_state_dict_copies_and_modes():
    network, _ = isometrize(resnet(), images())
    other, _ = isometrize(resnet(), images(seed=4))
    x = images(seed=1)
    assert not torch.allclose(network(x), other(x))
    other.load_state_dict(network.state_dict())
    for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network)), network.eval()):
        torch.testing.assert_close(twin(x), network(x), rtol=0, atol=0)
    double, _ = isometrize(resnet().double(), images().double())
    assert {p.dtype for p in double.parameters()} == {torch.float64} and double(
        x.double()
    ).dtype == torch.float64
    assert double(x.double()).isfinite().all()


def bars(size=16):
    """64 images of bars that lie or stand, in noise, and which of the two."""
    label = torch.arange(64) % 2
    x = images(64, 3, size, size, seed=2)
    for i in range(64):
        at = int(torch.randint(size - 3, ()))
        (x[i, :, :, at : at + 3] if label[i] else x[i, :, at : at + 3]).add_(1)
    return x, label


@pytest.mark.parametrize("signal", ["scaled", "paper"])
def test_thirty_steps_lower_the_loss(signal):
    network, _ = isometrize(resnet(), images(), signal)
    x, label = bars()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        losses.append(F.cross_entropy(network(x), label))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def check(model, size, warns=False, factor=2.0):
    """No normalization is left, every parameter learns, and the mean square at the activations is level."""
    x = images(2, 3, size, size)
    network, report = isometrize(model, x)
    assert report.norms and not kinds(network, NORM_LAYERS) and bool(report.left) == warns
    activations = watch(network, SReLU)
    output = network(images(2, 3, size, size, seed=1))
    found = [mean_square(y) for y in activations]
    assert len(found) == len(report.activations)
    assert max(found) < factor * found[0] and min(found) > found[0] / factor, found
    output.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    return report


def vgg16_bn():
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    model = torchvision.models.VGG(features, num_classes=10, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    return model


@pytest.mark.parametrize(
    "make, size, scales",
    [
        (torchvision.models.resnet18, 128, 8),
        (torchvision.models.resnet50, 64, 16),
        (torchvision.models.mobilenet_v2, 64, 10),
        (vgg16_bn, 96, 0),
        (torchvision.models.densenet121, 64, 0),
    ],
)
def test_networks_of_torchvision(make, size, scales):
    assert len(check(make(), size).scales) == scales


@pytest.mark.parametrize("name, scales", [("resnet50", 16), ("convnext_tiny", 18), ("efficientnet_b0", 9)])
def test_networks_of_timm(name, scales):
    timm = pytest.importorskip("timm")
    assert len(check(timm.create_model(name), 64).scales) == scales


@pytest.mark.parametrize("name, merges", [("Unet", 0), ("FPN", 4)])
def test_networks_of_segmentation_models_pytorch(name, merges):
    smp = pytest.importorskip("segmentation_models_pytorch")
    report = check(getattr(smp, name)("resnet18", encoder_weights=None), 128)
    assert len(report.merges) == merges and len(report.scales) == 8
