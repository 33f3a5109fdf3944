import math

import pytest
import torch
from engine_toys import ToyModel, tiny_resnet
from torch import nn

from iso_d2.analysis.layers import (
    find_blocks,
    find_network,
    measure_convolution,
    measure_convolutions,
    measure_scales,
    measure_thresholds,
    smallest_grid,
)
from iso_d2.isometry import conv_singular_values, isometry_error
from iso_d2.modeling import ISONet, UNet


def test_delta_initialised_layers_of_equal_width_are_isometries():
    layers = measure_convolutions(ISONet(8, True, stem="cifar"))
    equal = [x for x in layers.values() if x["shape"][0] == x["shape"][1]]
    assert len(equal) == 4
    for layer in equal:
        assert [layer[f"sigma_{which}"] for which in ("min", "median", "max")] == pytest.approx([1, 1, 1])
        assert layer["isometry_error"] == pytest.approx(0, abs=1e-5)
        assert (layer["gram_paper"], layer["gram_exact"]) == pytest.approx((0, 0), abs=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "arguments", [(6, 4, 3), (4, 8, 3, 2), (4, 6, 1, 2), (4, 4, (3, 1), 1), (4, 6, 2, 2)]
)
def test_range_is_that_of_the_side_that_can_be_an_isometry(arguments, transposed):
    torch.manual_seed(0)
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(*arguments).double()
    size = smallest_grid(conv.kernel_size, conv.stride)
    found = measure_convolution(conv)
    assert found["grid"] == list(size)
    assert found["isometry_error"] == isometry_error(conv.weight, size, conv.stride).item()
    assert found["sigma_max"] == conv_singular_values(conv.weight, size, conv.stride)[0].item()
    assert found["sigma_min"] > 1e-6


def test_grouped_convolution_by_hand():
    conv = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        conv.weight[:, :, 0, 0] = torch.tensor([[2.0, 0], [0, 3], [4, 0], [0, 6]])
    found = measure_convolution(conv)
    assert (found["sigma_min"], found["sigma_median"], found["sigma_max"]) == pytest.approx((2, 3, 6))
    assert found["isometry_error"] == pytest.approx(5)


def test_share_of_singular_values_near_one():
    conv = nn.Conv2d(5, 5, 1)
    with torch.no_grad():
        conv.weight[:, :, 0, 0] = torch.diag(torch.tensor([0.49, 0.51, 1.0, 1.49, 1.51]))
    assert measure_convolution(conv)["near_one"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_stops_no_training(bad):
    conv = nn.Conv2d(4, 4, 3)
    nn.init.constant_(conv.weight[0, 0, 0, 0], bad)
    found = measure_convolution(conv)
    assert all(math.isnan(found[name]) for name in ("sigma_min", "sigma_max", "isometry_error"))


def test_gram_errors_are_those_of_the_penalty_by_hand():
    conv = nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight[:, :, 0, 0] = torch.tensor([[3.0, 0], [0, 1]])
    # the Gram is diag(9, 1), so 1/2 (9 - 1)^2 = 32
    (found,) = measure_convolutions(nn.Sequential(conv)).values()
    assert (found["gram_paper"], found["gram_exact"]) == pytest.approx((32, 32))


@pytest.mark.parametrize(
    ("kernel_size", "stride", "grid", "expected"),
    [(3, 1, 0, 5), (3, 2, 0, 6), (7, 2, 0, 14), (1, 2, 0, 2), (3, 2, 7, 8), (3, 1, 8, 8), (1, 2, 16, 2)],
)
def test_grid(kernel_size, stride, grid, expected):
    assert measure_convolution(nn.Conv2d(2, 2, kernel_size, stride), grid)["grid"] == [expected] * 2


def test_larger_grid_only_widens_the_range():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3)
    small, large = measure_convolution(conv), measure_convolution(conv, 20)
    assert large["sigma_max"] > small["sigma_max"]
    assert large["sigma_min"] < small["sigma_min"]


def test_thresholds_and_scales():
    net = ISONet(8, True, stem="cifar", srelu_init=-2.0, scale_init=0.25)
    with torch.no_grad():
        net.res2[0].srelu.threshold[:4] = torch.tensor([-5.0, 3, 0, 0])
    thresholds = measure_thresholds(net)
    assert thresholds["res2.0.srelu"] == pytest.approx({"min": -5, "mean": (-2 * 12 - 5 + 3) / 16, "max": 3})
    assert thresholds["stem.srelu"] == {"min": -2, "mean": -2, "max": -2}
    assert measure_scales(net) == {f"res{stage}.0.scale": 0.25 for stage in (2, 3, 4)}
    assert (measure_thresholds(tiny_resnet()), measure_scales(tiny_resnet())) == ({}, {})


def test_networks_and_blocks():
    model = ToyModel(tiny_resnet())
    name, network = find_network(model)
    assert (name, network) == ("backbone", model.backbone)
    assert list(find_blocks(network)) == ["stem", "res2.0", "res2.1", "res3.0"]
    assert "decoder.0" in find_blocks(UNet(base_channels=2, depth=2))
    assert list(find_blocks(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))) == ["0"]
    with pytest.raises(ValueError, match=r"Linear has no nn\.Conv2d"):
        find_network(nn.Linear(2, 2))
