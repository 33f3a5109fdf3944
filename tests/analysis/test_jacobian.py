import pytest
import torch
from torch import nn

from iso_d2.analysis import jacobian
from iso_d2.analysis.jacobian import measure_jacobian, summarize_spectrum
from iso_d2.modeling import ISONet


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
    monkeypatch.setattr(jacobian, "EXACT_UP_TO", 0)
    found = measure_jacobian(network, image)["image"]
    assert found["method"] == "lanczos"
    assert sum(found["shares"]) == pytest.approx(1)
    assert found["max"] == pytest.approx(exact["max"], rel=1e-6)
    assert found["median"] == pytest.approx(exact["median"], rel=0.1)
    # the mean square, ||J||^2 / size
    mean_square = sum(v * v * s for v, s in zip(found["values"], found["shares"], strict=True))
    assert mean_square == pytest.approx(sum(v * v for v in exact["values"]) / len(exact["values"]), rel=0.1)


def test_lanczos_ends_where_there_are_few_different_values(monkeypatch):
    monkeypatch.setattr(jacobian, "EXACT_UP_TO", 0)
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
