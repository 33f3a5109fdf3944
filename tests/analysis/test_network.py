import pytest
import torch
from engine_toys import tiny_resnet
from torch import nn

from iso_d2.analysis.network import (
    calibrate_batch_norm,
    catch_input,
    measure_depth,
    network_input,
    record_points,
    record_step,
)
from iso_d2.modeling import ImageClassifier, ISONet, UNet


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


def test_recording_leaves_nothing_behind():
    network = nn.Sequential(Doubling(1.0))
    with record_points(network) as points:
        network(torch.ones(1, 1, 1, 1))
        assert list(points) == ["input", "0"]
        network(torch.full((1, 1, 1, 1), 2.0))
        assert points["input"].item() == 2  # the last pass
    network(torch.ones(1, 1, 1, 1))
    assert points["input"].item() == 2


def test_network_input_is_what_the_model_normalizes():
    model = ImageClassifier(
        backbone=ISONet(8, True, stem="cifar"), num_classes=2, pixel_mean=[10.0] * 3, pixel_std=[5.0] * 3
    )
    batch = [{"image": torch.full((3, 8, 8), value)} for value in (20.0, 0.0)]
    found = network_input(model, model.backbone, batch)
    assert found[:, 0, 0, 0].tolist() == [2, -2]
    assert model.training
    with pytest.raises(ValueError, match="ISONet has a stride of 4 pixels in all, the images have 3"):
        network_input(model, model.backbone, [{"image": torch.zeros(3, 3, 8)}])


def test_input_of_a_module_that_is_not_run():
    model = nn.Sequential(Doubling(3.0), Doubling(2.0))
    model[0].other = nn.Linear(1, 1)
    assert catch_input(model, model[1], torch.ones(1, 1, 1, 1)).item() == 3
    assert catch_input(model, model[0].other, torch.ones(1, 1, 1, 1)) is None
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_calibrated_norms_work_as_in_training_mode():
    torch.manual_seed(0)
    network = tiny_resnet(norm="BN")
    images = torch.randn(4, 3, 16, 16) * 3 + 1
    expected = network.train()(images)["res3"].detach()
    momentum = network.stem.conv1.norm.momentum
    assert calibrate_batch_norm(network, images) == 8
    assert not any(module.training for module in network.modules())
    assert network.stem.conv1.norm.momentum == momentum
    torch.testing.assert_close(network(images)["res3"], expected)
    assert calibrate_batch_norm(tiny_resnet(), images) == 0
    with pytest.raises(ValueError, match="1 of 4x4 pixels leave it a single value a channel"):
        calibrate_batch_norm(network, images[:1, :, :4, :4])


def test_a_step_whose_last_blocks_get_no_gradient():
    network = nn.Sequential(Doubling(2.0), Doubling(3.0), Doubling(5.0))
    with record_step(network) as values:
        hidden = network[:2](torch.ones(1, 1, 1, 1))
        network[2](hidden.detach())
        hidden.sum().backward()
    found = values()
    assert [found[f"{i}_gradient"] for i in (0, 1)] == pytest.approx([3, 1])
    assert "2_gradient" not in found
    assert (found["2_signal"], found["1.conv_max"]) == pytest.approx((30, 3))
