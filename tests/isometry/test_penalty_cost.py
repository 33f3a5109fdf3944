"""What the penalty costs, counted and not timed, and its random subset of frequencies."""

import copy
import itertools
import math

import pytest
import torch
from penalty_toys import Calls, resnet50_shapes, rounded_products
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from iso_d2.isometry import (
    SpectralPenalty,
    _orthogonality,
    conv_gram,
    orthogonality_loss,
    orthogonality_losses,
    orthogonality_multiply_adds,
)


def conv(*shape, stride=1, groups=1, kind=nn.Conv2d):
    torch.manual_seed(0)
    module = kind(*shape, stride=stride, groups=groups, bias=False, dtype=torch.float64)
    nn.init.normal_(module.weight, std=1 / math.sqrt(math.prod(module.weight.shape[1:])))
    return module


LAYERS = [
    conv(3, 5, 3),
    conv(5, 3, 3),
    conv(4, 4, 1),
    conv(4, 6, 3, stride=2),
    conv(4, 2, (3, 2), stride=(1, 2)),
    conv(4, 8, 1, stride=2),
    conv(6, 4, 3, groups=2),
    conv(2, 3, 4),
    conv(4, 2, 2, stride=2, kind=nn.ConvTranspose2d),
]


@pytest.mark.parametrize("mode", ["paper", "exact"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_multiply_adds_are_those_that_are_done(layer, mode):
    def batched(total, left, right, **_):
        """In place it is unknown to the counter."""
        return 2 * math.prod(left) * right[2]

    in_place = {torch.ops.aten.baddbmm_: batched}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        orthogonality_losses([layer], mode).sum().backward()
    assert 2 * orthogonality_multiply_adds(layer, mode) == counter.get_total_flops()


def test_multiply_adds_of_a_3x3_layer_by_hand():
    # 12 frequencies with 5 products of 2 x 2 by 2 x 7 each, frequency 0 with 2; 2 transforms of 3 tables,
    # 13 x 9, on 14 weights
    assert orthogonality_multiply_adds(conv(7, 2, 3)) == (12 * 5 + 2) * 2 * 2 * 7 + 2 * 3 * 13 * 9 * 14


def products(convs):
    """Names of the matrix products that value and gradient take."""
    with Calls() as calls:
        orthogonality_losses(convs).sum().backward()
    return [name for name in calls.names if name in ("mm", "bmm", "baddbmm", "convolution")]


def launches(convs, penalty=None):
    """How many operators value and gradient take, when the tables are made."""
    compute = SpectralPenalty(convs) if penalty == "spectral" else lambda: orthogonality_losses(convs)
    compute()
    with Calls() as calls:
        compute().sum().backward()
    return len(calls.names)


def test_launches_stay_within_a_budget():
    assert launches([conv(4, 4, 1)]) <= 12
    assert launches([conv(4, 4, 3)]) <= 19
    assert launches([conv(4, 4, 3, stride=2)]) <= 27
    assert launches([conv(4, 4, 3, stride=2)], "spectral") <= 30
    resnet50 = [conv(*shape, stride=stride) for *shape, stride in resnet50_shapes(4)]
    assert launches(resnet50) <= 202


@pytest.mark.parametrize("penalty", [None, "spectral"])
@pytest.mark.parametrize("stride", [1, 2])
def test_more_layers_of_one_shape_take_one_launch_more(penalty, stride):
    layers = [conv(4, 6, 3, stride=stride) for _ in range(7)]
    assert launches(layers, penalty) <= launches(layers[:1], penalty) + 1


@pytest.mark.parametrize("count", [1, 7])
def test_layers_of_one_shape_share_their_products(count):
    # two transforms, two products for the value, three for the gradient, and no convolution
    assert sorted(products([conv(4, 6, 3) for _ in range(count)])) == ["baddbmm", *["bmm"] * 4, "mm", "mm"]
    assert products([conv(4, 6, 1) for _ in range(count)]) == ["bmm", "baddbmm"]


def test_frozen_layers_cost_no_gradient():
    frozen = conv(4, 6, 1).requires_grad_(False)
    assert products([frozen, conv(4, 6, 1)]) == ["bmm", "bmm", "baddbmm"]


def test_buffers_are_used_again_and_do_not_leak_into_results():
    first, second = conv(5, 5, 3), conv(5, 5, 3)
    with torch.no_grad():
        second.weight.mul_(0.5)
    one, two = orthogonality_losses([first]).sum(), orthogonality_losses([second]).sum()
    one.backward()
    two.backward()
    for layer in (first, second):
        fresh = layer.weight.detach().clone().requires_grad_()
        orthogonality_loss(fresh).backward()
        torch.testing.assert_close(layer.weight.grad, fresh.grad, rtol=0, atol=0)


def test_buffers_made_in_inference_mode_serve_training():
    with torch.inference_mode():
        orthogonality_losses([conv(9, 9, 5)])
    orthogonality_losses([conv(9, 9, 5)]).sum().backward()


def test_fake_tensors_and_a_default_device_leave_nothing_behind():
    shape = 7, 7, 2  # of no other test: no buffer and no table is kept yet
    with FakeTensorMode():
        layer = nn.Conv2d(*shape, bias=False, dtype=torch.float64)
        orthogonality_losses([layer]).sum().backward()
        assert layer.weight.grad.shape == layer.weight.shape
    real = conv(*shape)
    with torch.device("meta"):
        on_cpu = orthogonality_losses([real])
    torch.testing.assert_close(on_cpu[0], 0.5 * (conv_gram(real.weight) - delta(7, 3)).square().sum())


def delta(channels, size):
    target = torch.zeros(channels, channels, size, size, dtype=torch.float64)
    target[:, :, size // 2, size // 2] = torch.eye(channels)
    return target


def estimates(layers, fraction, draws):
    """(draws,) values and (draws, weights) gradients of the layers."""
    generator = torch.Generator().manual_seed(0)
    values, grads = [], []
    for _ in range(draws):
        loss = orthogonality_losses(layers, fraction=fraction, generator=generator).sum()
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [c.weight for c in layers])]))
        values.append(loss.detach())
    return torch.stack(values), torch.stack(grads)


def test_the_mean_over_all_draws_is_exact():
    """A 2x2 kernel has 5 frequencies: each of the 10 subsets of 2 or 3 is as likely as any other."""
    layer = conv(3, 4, 2)
    exact = orthogonality_losses([layer]).sum()
    exact_grad = torch.autograd.grad(exact, layer.weight)[0].flatten()
    values, grads = estimates([layer], 0.4, 400)
    distinct = {round(value.item(), 9): i for i, value in enumerate(values)}
    assert len(distinct) == len(list(itertools.combinations(range(5), 2)))
    chosen = list(distinct.values())
    torch.testing.assert_close(values[chosen].mean(), exact.detach())
    torch.testing.assert_close(grads[chosen].mean(0), exact_grad)


def test_the_variance_is_the_documented_one():
    layer = conv(3, 4, 2)
    values = torch.tensor(sorted({round(v.item(), 9) for v in estimates([layer], 0.2, 200)[0]}))
    assert len(values) == 5
    terms = values.double() / 5  # one frequency drawn counts for all five
    pairs = torch.tensor(sorted({round(v.item(), 9) for v in estimates([layer], 0.4, 400)[0]})).double()
    expected = 5**2 * (1 / 2 - 1 / 5) * terms.var(correction=1)
    torch.testing.assert_close(pairs.var(correction=0), expected, rtol=1e-4, atol=0)


def test_a_fraction_leaves_1x1_and_strided_layers_exact():
    layers = [conv(4, 4, 1), conv(4, 4, 3, stride=2)]
    exact = orthogonality_losses(layers)
    assert torch.equal(orthogonality_losses(layers, fraction=0.1), exact)


def test_the_draw_is_that_of_the_generator():
    """Value by the discrete Fourier transform at the frequencies drawn, of 5: half of a 3 x 3 grid."""
    layer = conv(3, 4, 2)
    drawn = torch.randperm(5, generator=torch.Generator().manual_seed(1))[:2].tolist()
    spectrum = torch.fft.fft2(layer.weight.detach(), s=(3, 3))
    value = 0
    for y, x in [[(0, 0), (0, 1), (1, -1), (1, 0), (1, 1)][i] for i in drawn]:
        a = spectrum[:, :, y, x]
        error = (a.mH @ a - torch.eye(3)).abs().square().sum()  # of the 3 inputs
        value += 5 / 2 * 0.5 * error * (1 if (y, x) == (0, 0) else 2) / 9
    got = orthogonality_losses([layer], fraction=0.4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(got[0].detach(), value)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_the_draw_is_on_the_device_of_the_weights():
    with FakeTensorMode(), Calls() as calls:
        layer = nn.Conv2d(3, 4, 2, device="cuda")
        orthogonality_losses([layer], fraction=0.4)
    (device,) = [d for name, d in zip(calls.names, calls.devices, strict=True) if name == "randperm"]
    assert torch.device(device).type == "cuda"


@pytest.mark.parametrize("layer", [conv(3, 5, 3), conv(4, 4, 1), conv(4, 6, 3, stride=2)], ids=str)
def test_only_the_products_of_the_gradient_are_rounded(monkeypatch, layer):
    """With a precision of our own in the place of TF32: products within it are counted."""
    rounded = rounded_products(monkeypatch, _orthogonality)
    orthogonality_losses([layer]).sum()
    assert not rounded
    orthogonality_losses([layer], precision="tf32")
    with Calls() as calls:
        orthogonality_losses([copy.deepcopy(layer).requires_grad_(False)])
    for_values = [name for name in calls.names if "mm" in name]
    assert len(rounded) == len(products([layer])) - len(for_values) > 0


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision must be 'float32' or 'tf32', got 'bfloat16'"):
        orthogonality_losses([conv(2, 2, 3)], precision="bfloat16")


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, math.nan])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and at most 1, got"):
        orthogonality_losses([conv(2, 2, 3)], fraction=fraction)


@pytest.mark.filterwarnings("ignore")
def test_it_compiles_into_one_graph():
    layers = [conv(3, 4, 3), conv(4, 8, 1), conv(4, 6, 3, stride=2)]
    weights = [layer.weight for layer in layers]
    compiled = torch.compile(lambda: orthogonality_losses(layers).sum(), backend="eager", fullgraph=True)
    expected = orthogonality_losses(layers).sum()
    torch.testing.assert_close(compiled(), expected)
    for a, b in zip(
        torch.autograd.grad(compiled(), weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(a, b)
