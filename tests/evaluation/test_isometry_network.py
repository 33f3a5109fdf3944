import pytest
import torch
from engine_toys import tiny_resnet
from torch import nn

from iso_d2.evaluation import isometry_jacobian
from iso_d2.evaluation.isometry_jacobian import measure_jacobian, summarize_spectrum
from iso_d2.evaluation.isometry_network import (
    BlockRecorder,
    calibrate_batch_norm,
    measure_depth,
    network_input,
)
from iso_d2.modeling import ImageClassifier, ISONet, UNet


def dense(network, shape):
    """The matrix of a linear network: the identity basis pushed through it."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.stack([network(x.view(1, *shape)).flatten() for x in basis], dim=1).detach()


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 3), (3, 2)])
def test_jacobian_of_a_linear_network_is_its_dense_matrix(inputs, outputs):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(inputs, 3, 3, padding=1, bias=False), nn.Conv2d(3, outputs, 3, padding=1, bias=False)
    ).double()
    expected = torch.linalg.svdvals(dense(network, (inputs, 5, 4)))
    image = torch.randn(1, inputs, 5, 4, dtype=torch.float64)
    found = measure_jacobian(network, image)
    assert list(found) == ["image"]
    assert found["image"]["method"] == "exact"
    assert (found["image"]["rows"], found["image"]["columns"]) == (outputs * 20, inputs * 20)
    assert found["image"]["values"] == pytest.approx(expected.tolist(), rel=1e-9)


def isonet():
    torch.manual_seed(0)
    return ISONet(8, True, stem="cifar", scale_init=0.5, srelu_init=0.0).double().eval()


def test_jacobian_of_an_isonet_agrees_with_finite_differences():
    # piecewise linear, so that a small step gives the Jacobian but for rounding
    network = isonet()
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)

    def change(x):
        with torch.no_grad():
            return (network(image + 1e-7 * x)["res4"] - network(image)["res4"]) / 1e-7

    expected = torch.linalg.svdvals(dense(change, (3, 8, 8)))
    found = measure_jacobian(network, image)["image"]
    assert found["values"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found["max"] > 1


def test_lanczos_finds_the_density(monkeypatch):
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False)).double()
    torch.manual_seed(0)
    network[0].weight.data.normal_()
    image = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    exact = measure_jacobian(network, image)["image"]
    monkeypatch.setattr(isometry_jacobian, "EXACT_UP_TO", 0)
    found = measure_jacobian(network, image)["image"]
    assert found["method"] == "lanczos"
    assert sum(found["shares"]) == pytest.approx(1)
    assert found["max"] == pytest.approx(exact["max"], rel=1e-6)
    assert found["median"] == pytest.approx(exact["median"], rel=0.1)
    # the mean square, ||J||^2 / size
    mean_square = sum(v * v * s for v, s in zip(found["values"], found["shares"], strict=True))
    assert mean_square == pytest.approx(sum(v * v for v in exact["values"]) / len(exact["values"]), rel=0.1)


def test_lanczos_ends_where_there_are_few_different_values(monkeypatch):
    monkeypatch.setattr(isometry_jacobian, "EXACT_UP_TO", 0)
    network = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False)).double()
    network[0].weight.data[:, :, 0, 0] = torch.diag(torch.tensor([3.0, 0.0]))
    found = measure_jacobian(network, torch.zeros(1, 2, 20, 20, dtype=torch.float64))["image"]
    assert found["max"] == pytest.approx(3)
    assert found["share"] == pytest.approx(0.5, abs=0.1)
    assert (found["q95"], found["q05"]) == pytest.approx((3, 3))


def test_delta_initialised_net_is_an_isometry_from_the_stem_where_nothing_is_cut():
    network = ISONet(8, True, stem="cifar", srelu_init=-100.0, out_features=["res2"]).double().eval()
    found = measure_jacobian(network, torch.randn(1, 3, 4, 4, dtype=torch.float64))
    assert list(found) == ["image", "stem"]
    assert found["stem"]["values"] == pytest.approx([1.0] * 256)
    # three channels of sixteen come from the image
    assert (found["image"]["rows"], found["image"]["columns"]) == (256, 48)
    assert found["image"]["values"] == pytest.approx([1.0] * 48)


def test_summary_by_hand():
    summary = summarize_spectrum([8.0, 4, 2, 1, 0], [0.1, 0.1, 0.2, 0.1, 0.5])
    assert summary == {"share": pytest.approx(0.5), "max": 8, "q95": 8, "median": 2, "q05": 1}
    assert summarize_spectrum([0.0], [1.0]) == {"share": 0, "max": 0, "q95": 0, "median": 0, "q05": 0}


class Doubling(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, factor)

    def forward(self, x):
        return self.conv(x)


def test_signal_and_gradient_by_hand():
    network = nn.Sequential(Doubling(2.0), Doubling(3.0), nn.MaxPool2d(2), Doubling(5.0))
    images = torch.full((2, 1, 4, 4), 0.5)
    depth = measure_depth(network, images)
    assert list(depth) == ["input", "0", "1", "3"]
    assert [x["signal_rms"] for x in depth.values()] == pytest.approx([1, 2, 6, 30])
    # pooling leaves 4 of 16 pixels, the norm is half
    assert [x["signal_norm"] for x in depth.values()] == pytest.approx([1, 2, 6, 15])
    assert [x["gradient_norm"] for x in depth.values()] == pytest.approx([30, 15, 5, 1])
    assert all(p.requires_grad for p in network.parameters())


def test_residual_net_at_its_start_keeps_signal_and_gradient():
    network = ISONet(8, True, stem="cifar", srelu_init=-100.0, out_features=["res2"]).eval()
    depth = measure_depth(network, torch.randn(2, 3, 8, 8))
    assert list(depth) == ["stem", "res2.0"]
    for point in depth.values():
        assert list(point.values()) == pytest.approx([1, 1, 1], rel=1e-5)


def test_depth_of_a_unet_is_in_the_order_of_execution():
    depth = measure_depth(UNet(base_channels=2, depth=2).eval(), torch.randn(1, 3, 8, 8))
    assert list(depth) == ["input", "encoder.0", "encoder.1", "ups.0", "decoder.0"]


def test_recorder_leaves_nothing_behind():
    network = nn.Sequential(Doubling(1.0))
    recorder = BlockRecorder(network)
    network(torch.ones(1, 1, 1, 1))
    assert list(recorder.points) == ["input", "0"]
    recorder.detach()
    recorder.points.clear()
    network(torch.ones(1, 1, 1, 1))
    assert recorder.points == {}


def test_network_input_is_what_the_model_normalizes():
    model = ImageClassifier(
        backbone=ISONet(8, True, stem="cifar"), num_classes=2, pixel_mean=[10.0] * 3, pixel_std=[5.0] * 3
    )
    images = [torch.full((3, 8, 8), 20.0), torch.full((3, 8, 8), 0.0)]
    found = network_input(model, model.backbone, images)
    assert found[:, 0, 0, 0].tolist() == [2, -2]
    assert model.training
    with pytest.raises(ValueError, match="ISONet has a stride of 4 pixels in all, the images have 3"):
        network_input(model, model.backbone, [torch.zeros(3, 3, 8)])


def test_calibrated_norms_work_as_in_training_mode():
    torch.manual_seed(0)
    network = tiny_resnet(norm="BN")
    images = torch.randn(4, 3, 16, 16) * 3 + 1
    expected = network.train()(images)["res3"].detach()
    momentum = network.stem.conv1.norm.momentum
    assert calibrate_batch_norm(network, images) == 8
    assert not any(module.training for module in network.modules())
    assert network.stem.conv1.norm.momentum == momentum
    # running variances have n - 1 in the denominator
    assert torch.allclose(network(images)["res3"], expected, rtol=0.1, atol=0.1)
    assert calibrate_batch_norm(tiny_resnet(), images) == 0
    with pytest.raises(ValueError, match="1 of 4x4 pixels leave it a single value a channel"):
        calibrate_batch_norm(network, images[:1, :, :4, :4])
