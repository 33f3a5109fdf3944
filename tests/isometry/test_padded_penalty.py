"""The penalty as a GPU computes it, layers of several shapes padded to common ones, on a CPU."""

import importlib
import math

import pytest
import torch
from penalty_toys import Calls, resnet50_shapes, rounded_products
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from iso_d2.isometry import _padded, conv_gram, orthogonality_losses, orthogonality_multiply_adds

orthogonality = importlib.import_module("iso_d2.isometry.orthogonality")


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(orthogonality, "_on_gpu", lambda device: True)


def conv(*shape, kind=nn.Conv2d, dtype=torch.float64, **options):
    layer = kind(*shape, bias=False, dtype=dtype, **options)
    with torch.no_grad():
        layer.weight.normal_(std=1 / math.sqrt(math.prod(layer.weight.shape[1:])))
    return layer


# Most shapes are padded in one direction or in both
SHAPES = [
    *[(8, 16, 3), (16, 24, 3), (16, 8, 3), (24, 16, 3), (24, 24, 3)],
    *[(8, 8, 1), (8, 48, 1), (16, 40, 1), (48, 8, 1)],
    *[(8, 16, (1, 3)), (16, 16, (1, 3)), (8, 8, 2), (16, 8, 4)],
]
STRIDED = [
    *[(8, 8, 3, 2), (24, 16, 3, 2), (16, 24, 3, 2), (24, 24, 3, 2), (8, 16, 1, 2), (16, 8, 5, 3)],
    *[(16, 24, (3, 2), (1, 2)), (8, 16, (3, 2), (1, 2)), (8, 64, 2, 2), (64, 8, 2, 2)],
]


def layers():
    """Also some that are not padded: few channels, groups, a polyphase kernel in mode "exact"."""
    torch.manual_seed(0)
    others = [conv(3, 5, 3), conv(16, 16, 3, groups=2), conv(8, 24, 2, stride=2, kind=nn.ConvTranspose2d)]
    strided = [conv(*shape, stride=stride) for *shape, stride in STRIDED]
    mixed = [*(conv(*shape) for shape in SHAPES + SHAPES[:4]), *others, *strided]
    return [mixed[i] for i in torch.randperm(len(mixed))]


def expected(layer, mode):
    """1/2 ||Gram - delta||^2 from the convolution of the kernel with itself, to be differentiated."""
    total = 0
    for weight in layer.weight.chunk(layer.groups):
        stride = tuple(map(min, layer.stride, weight.shape[2:]))
        out_channels, in_channels = weight.shape[:2]
        if mode == "exact" and out_channels > in_channels * math.prod(stride):
            weight, stride = nn.functional.pixel_unshuffle(weight, stride[0]).transpose(0, 1), (1, 1)
        elif out_channels > in_channels and (mode == "paper" or stride == (1, 1)):
            weight = weight.transpose(0, 1)
        gram = conv_gram(weight, stride)
        delta = torch.zeros_like(gram)
        delta[:, :, gram.shape[2] // 2, gram.shape[3] // 2] = torch.eye(len(gram))
        total = total + 0.5 * (gram - delta).square().sum()
    return total


def formula(convs, mode="paper"):
    return torch.stack([expected(layer, mode) for layer in convs])


@pytest.mark.parametrize("mode", ["paper", "exact"])
@pytest.mark.parametrize(
    "factors", [None, torch.linspace(0.5, 2, 30, dtype=torch.float64)], ids=["sum", "each"]
)
def test_values_and_gradients_are_those_of_the_formula(on_gpu, mode, factors):
    convs = layers()
    results = []
    for values in (orthogonality_losses(convs, mode), formula(convs, mode)):
        total = values.sum() if factors is None else values @ factors
        results.append((values, *torch.autograd.grad(total, [layer.weight for layer in convs])))
    torch.testing.assert_close(*results)


def test_shapes_are_put_together():
    kinds = tuple((layer.stride, layer.weight.shape) for layer in (conv(*shape) for shape in SHAPES[:9]))
    buckets, unit, width = _padded._buckets(kinds, "paper")
    assert len(buckets) < len(set(kinds)) and unit == width**0.5 == 8
    assert sorted(i for bucket in buckets for i in bucket.layers) == list(range(len(kinds)))
    padded, own = (sum(b.multiply_adds() for b in some) for some in (buckets, each(kinds)))
    assert own < padded <= 1.5 * own


def each(kinds):
    return [bucket for kind in kinds for bucket in _padded._buckets((kind,), "paper")[0]]


@pytest.mark.parametrize("change", [nn.Module.half, lambda conv: conv.to(memory_format=torch.channels_last)])
def test_half_precision_and_channels_last(on_gpu, change):
    convs = [change(conv(*shape).float()) for shape in SHAPES]
    values = orthogonality_losses(convs)
    grads = torch.autograd.grad(values.sum(), [layer.weight for layer in convs])
    convs = [layer.double() for layer in convs]
    wanted = formula(convs)
    torch.testing.assert_close(values, wanted.float())
    for grad, exact in zip(grads, torch.autograd.grad(wanted.sum(), [c.weight for c in convs]), strict=True):
        torch.testing.assert_close(grad, exact.to(grad.dtype))


def test_frozen_layers_change_nothing(on_gpu):
    convs = [conv(*shape) for shape in SHAPES]
    before = orthogonality_losses(convs)
    for layer in convs[::2]:
        layer.requires_grad_(False)
    after = orthogonality_losses(convs)
    torch.testing.assert_close(after, before)
    after.sum().backward()
    assert [layer.weight.grad is None for layer in convs[:3]] == [True, False, True]


def test_a_layer_that_is_not_finite_leaves_the_values_of_others(on_gpu):
    convs = [conv(8, 8, 3), conv(8, 16, 3), conv(16, 16, 3), conv(8, 8, 1)]
    before = orthogonality_losses(convs)
    with torch.no_grad():
        convs[1].weight[0, 0, 0, 0] = math.nan
    after = orthogonality_losses(convs)
    assert after[1].isnan()
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])


def test_a_fraction_of_the_frequencies_is_drawn_as_before(monkeypatch):
    convs = [conv(*shape) for shape in SHAPES]

    def drawn():
        return orthogonality_losses(convs, fraction=0.5, generator=torch.Generator().manual_seed(1))

    on_cpu = drawn()
    monkeypatch.setattr(orthogonality, "_on_gpu", lambda device: True)
    assert torch.equal(drawn(), on_cpu)


def test_launches_and_multiply_adds_stay_within_a_budget(on_gpu):
    options = {"bias": False, "dtype": torch.float32}
    convs = [nn.utils.skip_init(nn.Conv2d, *shape, stride=s, **options) for *shape, s in resnet50_shapes(64)]
    for _ in range(2):  # the first time tables are made
        with Calls(skipping=True) as calls, FlopCounterMode(display=False) as counter:
            torch.autograd.grad(orthogonality_losses(convs).sum(), [layer.weight for layer in convs])
    assert len(calls.names) <= 60
    # padding adds 5.5 %, pairs of taps in both orders the rest
    assert 1 < counter.get_total_flops() / 2 / sum(map(orthogonality_multiply_adds, convs)) < 1.101


def test_only_the_products_of_the_gradient_are_rounded(monkeypatch, on_gpu):
    convs = [conv(8, 16, 3), conv(8, 8, 1), conv(8, 8, 3, stride=2)]
    rounded = rounded_products(monkeypatch, _padded)
    orthogonality_losses(convs)
    assert not rounded
    orthogonality_losses(convs, precision="tf32")
    # by frequency three and one back, of a matrix one, by pairs one and one back
    assert sorted(rounded) == sorted(["bmm"] * 3 + ["mm"] + ["baddbmm"] + ["baddbmm", "mm"])
