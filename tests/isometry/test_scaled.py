import math

import pytest
import torch
import torch.nn.functional as F
from dense_operator import dense_operator
from torch import nn

from iso_d2.isometry import (
    ScaledConv2d,
    ScaledConvTranspose2d,
    ScaledLinear,
    conv_gain,
    conv_singular_values,
    delta_init_,
    orthogonal_init_,
    orthogonality_losses,
)

# in_channels, out_channels, kernel size, options
CONVS = [
    (3, 5, 3, {"padding": 1}),
    (5, 3, 3, {"stride": 2, "padding": 1}),
    (4, 6, 1, {"stride": 2}),
    (4, 6, 3, {"groups": 2, "padding": 1}),
    (4, 4, 2, {"groups": 4}),
    (2, 4, 4, {"dilation": 2, "padding": 3}),
    (2, 2, (3, 1), {"padding": (1, 0), "padding_mode": "circular", "bias": False}),
]
TRANSPOSED = [
    (4, 2, 2, {"stride": 2}),
    (4, 3, 6, {"stride": 2, "padding": 2}),
    (3, 4, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    (4, 6, 3, {"groups": 2}),
]
ALL = [(ScaledConv2d, *case) for case in CONVS] + [(ScaledConvTranspose2d, *case) for case in TRANSPOSED]


def unscaled(conv):
    """The same layer of PyTorch, without gain and metric."""
    plain = {ScaledConv2d: nn.Conv2d, ScaledConvTranspose2d: nn.ConvTranspose2d}[type(conv)]
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    options = {name: getattr(conv, name) for name in names}
    if plain is nn.ConvTranspose2d:
        options["output_padding"] = conv.output_padding
    layer = plain(
        conv.in_channels, conv.out_channels, conv.kernel_size, bias=conv.bias is not None, **options
    )
    layer.load_state_dict({n: p for n, p in conv.named_parameters() if n != "metric"})
    return layer.double()


@pytest.mark.parametrize("kind, inputs, outputs, size, options", ALL)
@pytest.mark.parametrize("scales", ["none", "number", "channels"])
def test_scales_are_those_of_the_inputs(kind, inputs, outputs, size, options, scales):
    """W scaled is W of scaled inputs: g conv(m s x)."""
    conv = kind(inputs, outputs, size, gain=1.7, metric=True, **options).double()
    nn.init.normal_(conv.metric)
    scale = {"none": None, "number": torch.tensor(-0.3), "channels": torch.randn(inputs)}[scales]
    scale = None if scale is None else scale.double().requires_grad_()
    x = torch.randn(2, inputs, 6, 6, dtype=torch.float64)
    factors = conv.metric if scale is None else conv.metric * scale
    bias = 0 if conv.bias is None else conv.bias.view(-1, 1, 1)
    expected = 1.7 * (unscaled(conv)(factors.view(-1, 1, 1) * x) - bias) + bias
    torch.testing.assert_close(conv(x, scale), expected, rtol=1e-12, atol=1e-12)
    parameters = [p for p in (conv.weight, conv.metric, scale) if p is not None]
    for ours, theirs in zip(
        torch.autograd.grad(conv(x, scale).cos().sum(), parameters),
        torch.autograd.grad(
            (1.7 * (F_conv(conv, factors.view(-1, 1, 1) * x)) + bias).cos().sum(), parameters
        ),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def F_conv(conv, x):
    """The layer's convolution with its plain weight, without bias."""
    if isinstance(conv, nn.ConvTranspose2d):
        options = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
        return F.conv_transpose2d(x, conv.weight, None, *options)
    return conv._conv_forward(x, conv.weight, None)


@pytest.mark.parametrize("kind, inputs, outputs, size, options", [ALL[1], ALL[3], ALL[7], ALL[10]])
def test_gradients(kind, inputs, outputs, size, options):
    conv = kind(inputs, outputs, size, gain=0.6, metric=True, **options).double()

    def run(x, weight, metric, scale):
        values = {"weight": weight, "metric": metric}
        return torch.func.functional_call(conv, values, (x, scale))

    tensors = [torch.randn(2, inputs, 4, 4), conv.weight, 1 + torch.rand(inputs), torch.randn(inputs)]
    tensors = [t.detach().double().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradcheck(
        run, [*tensors[:3], torch.tensor(0.4, dtype=torch.float64).requires_grad_()]
    )


def test_an_isometry_in_a_metric():
    """<A x, A x'> = g^2 <x, x'>_M, report, section 7."""
    conv = ScaledConv2d(
        3, 8, 3, padding=1, padding_mode="circular", bias=False, gain=1.5, metric=True
    ).double()
    orthogonal_init_(conv.weight)
    nn.init.normal_(conv.metric)
    x, y = torch.randn(2, 1, 3, 6, 6, dtype=torch.float64)
    inner = (conv(x) * conv(y)).sum()
    expected = 1.5**2 * (x * y * conv.metric.square().view(-1, 1, 1)).sum()
    torch.testing.assert_close(inner, expected)


@pytest.mark.parametrize("kind, inputs, outputs, size, options", ALL)
def test_the_gain_makes_the_mean_square_of_white_inputs_one(kind, inputs, outputs, size, options):
    """The mean square of white noise through a linear map is the mean of its rows' squares."""
    groups, transposed = options.get("groups", 1), kind is ScaledConvTranspose2d
    stride = options.get("stride", 1)
    weight = torch.empty_like(kind(inputs, outputs, size, **options).weight, dtype=torch.float64)
    orthogonal_init_(weight, stride, groups, transposed)
    gain = conv_gain(weight.shape, stride, groups, transposed)
    operator = gain * dense_operator(weight, (12, 12), stride, groups)
    if transposed:
        operator = operator.T
    rows = operator.square().sum(1)
    assert rows.mean().item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    "shape, stride, groups, transposed, square",
    [
        ((64, 3, 3, 3), 1, 1, False, 64 / 3),
        ((64, 3, 7, 7), 2, 1, False, 64 / 12),
        ((32, 16, 3, 3), 2, 1, False, 1),  # 64 values read
        ((32, 16, 1, 1), 2, 1, False, 2),  # 16 values read
        ((8, 16, 3, 3), 1, 1, False, 1),
        ((8, 4, 3, 3), (1, 2), 1, False, 1),
        ((8, 2, 3, 3), 1, 2, False, 2),
        ((16, 8, 2, 2), 2, 1, True, 2),  # each pixel of 16 values becomes 4 of 8
        ((16, 8, 6, 6), 2, 1, True, 2),
        ((16, 4, 2, 2), 2, 1, True, 1),
        ((16, 2, 2, 2), 2, 1, True, 1),
        ((4, 4, 1, 1), 2, 1, True, 4),  # three of four output pixels are gaps
    ],
)
def test_the_rule_by_hand(shape, stride, groups, transposed, square):
    assert conv_gain(shape, stride, groups, transposed) == pytest.approx(math.sqrt(square), rel=1e-12)


def test_the_rule_refuses_what_is_no_convolution():
    with pytest.raises(ValueError, match=r"takes a shape \(M, C / groups, kh, kw\), got \(4, 4\)"):
        conv_gain((4, 4))
    with pytest.raises(ValueError, match="groups must divide the first of the weight's sizes"):
        conv_gain((4, 4, 1, 1), groups=3)
    with pytest.raises(ValueError, match="stride must be a positive int or 2 of them"):
        conv_gain((4, 4, 1, 1), stride=0)


def test_what_measures_isometry_does_not_see_the_scale():
    conv = ScaledConv2d(3, 6, 3, gain=5.0, metric=True)
    delta_init_(conv.weight)
    nn.init.constant_(conv.metric, 7.0)
    assert orthogonality_losses([conv], "exact").item() < 1e-12
    assert conv_singular_values(conv.weight, 5).aminmax() == (1, 1)


def test_a_gain_is_kept_with_the_weights():
    scaled, plain = ScaledConv2d(3, 6, 3, gain=1.25, bias=False), ScaledConv2d(3, 6, 3, bias=False)
    assert list(plain.state_dict()) == ["weight"] == list(nn.Conv2d(3, 6, 3, bias=False).state_dict())
    assert list(scaled.state_dict()) == ["weight", "gain"]
    other = nn.Sequential(ScaledConv2d(3, 6, 3, bias=False))
    other.load_state_dict(nn.Sequential(scaled).state_dict())
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(other(x), scaled(x)) and other[0].gain == 1.25
    # weights of old are no function of this layer's gain
    scaled.load_state_dict(plain.state_dict())
    assert torch.equal(scaled(x), plain(x))
    # a checkpoint without this layer leaves it as it is
    other.load_state_dict({}, strict=False)
    assert other[0].gain == 1.25


def test_a_metric_of_its_own_does_not_stay_with_weights_that_had_none():
    plain, metric = ScaledConv2d(3, 6, 3), ScaledConv2d(3, 6, 3, metric=True)
    nn.init.constant_(metric.metric, 5.0)
    result = metric.load_state_dict(plain.state_dict(), strict=False)
    assert result.missing_keys == ["metric"] and (metric.metric == 1).all()


def test_a_gain_reaches_a_layer_whose_weight_is_parametrized():
    source, target = (
        nn.utils.parametrizations.weight_norm(ScaledConv2d(3, 6, 3, gain=gain)) for gain in (2.0, 1.0)
    )
    target.load_state_dict(source.state_dict())
    assert target.gain == 2


def test_a_functional_call_takes_parameters_and_no_gains():
    conv = nn.Sequential(ScaledConv2d(3, 6, 3, gain=1.25))
    x = torch.randn(1, 3, 5, 5)
    doubled = {name: 2 * parameter for name, parameter in conv.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(conv, doubled, (x,)), 2 * conv(x))
    with pytest.raises(TypeError, match=r"`gain`: 1\.25 is not an instance of"):
        torch.func.functional_call(conv, conv.state_dict(), (x,))


def test_an_output_size_can_be_asked_for():
    conv = ScaledConvTranspose2d(3, 2, 3, stride=2, padding=1, bias=False)
    plain = unscaled(conv).float()
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(conv(x, output_size=(10, 10)), plain(x, output_size=(10, 10)))


def test_the_fold():
    conv = ScaledConvTranspose2d(4, 2, 2, stride=2, gain=1.5, metric=True, bias=True)
    nn.init.normal_(conv.metric)
    x, scale = torch.randn(1, 4, 3, 3), torch.tensor(0.3)
    expected = conv(x, scale)
    conv.fold_(scale)
    torch.testing.assert_close(conv(x), expected)
    assert sorted(conv.state_dict()) == ["bias", "weight"]


@pytest.mark.parametrize("metric", [False, True])
def test_half_precision_and_channels_last(metric):
    conv = ScaledConv2d(4, 8, 3, padding=1, gain=2**0.5, metric=metric)
    conv = conv.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    scale = torch.tensor(0.5, requires_grad=True)
    expected = conv(x, scale)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x, scale)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and conv.weight.grad.dtype == scale.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    conv.bfloat16()
    assert conv(x.bfloat16(), scale).dtype == torch.bfloat16  # a scale without dimensions promotes nothing


def test_export_and_trace():
    conv = nn.Sequential(ScaledConv2d(4, 8, 3, padding=1, gain=1.5, metric=True)).eval()
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        for copy in (torch.export.export(conv, (x,)).module(), torch.jit.trace(conv, x)):
            torch.testing.assert_close(copy(x), conv(x))


def test_what_is_refused():
    for gain in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="gain must be a finite number above 0"):
            ScaledConv2d(3, 3, 3, gain=gain)
    with pytest.raises(ValueError, match="a scale must have 3 values, one an input channel"):
        ScaledConv2d(3, 4, 3)(torch.randn(1, 3, 5, 5), torch.ones(4))


def test_a_linear_layer_with_a_gain():
    layer, plain = ScaledLinear(4, 3, gain=2.5), ScaledLinear(4, 3)
    x = torch.randn(5, 4)
    expected = 2.5 * (x @ layer.weight.T) + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert list(plain.state_dict()) == ["weight", "bias"]
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(plain(x), expected)
    layer.fold_()
    torch.testing.assert_close(layer(x), expected)
    assert list(layer.state_dict()) == ["weight", "bias"]
    with pytest.raises(ValueError, match="ScaledLinear gain must be a finite number above 0"):
        ScaledLinear(4, 3, gain=0)
