import copy
import math

import pytest
import torch
import torch.nn.functional as F
from dense_operator import dense_operator
from torch import nn

from iso_d2.isometry import conv_gram, delta_init_, orthogonality, orthogonality_loss, orthogonality_losses


def random_weight(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype) / math.sqrt(math.prod(shape[1:]))


def paper_formula(weight, stride=1):
    """The paper's code in its own terms: a convolution of the kernel with itself, minus delta."""
    if weight.shape[0] > weight.shape[1]:
        weight = weight.transpose(0, 1)
    gram = F.conv2d(weight, weight, stride=stride, padding=[k - 1 for k in weight.shape[2:]])
    delta = torch.zeros_like(gram)
    delta[:, :, gram.shape[2] // 2, gram.shape[3] // 2] = torch.eye(len(gram), dtype=gram.dtype)
    return 0.5 * (gram - delta).square().sum()


def dense_penalty(weight, stride):
    """1/2 ||A A^T - I||^2, or A^T A over the columns read, for one output position of a circular grid."""
    size = [s * (2 * math.ceil(k / s) - 1) for k, s in zip(weight.shape[2:], stride, strict=True)]
    a = dense_operator(weight, size, stride)
    a = a[:, a.abs().sum(0) > 0]
    gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
    positions = math.prod(n // s for n, s in zip(size, stride, strict=True))
    return 0.5 * (gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum() / positions


@pytest.mark.parametrize("channels", [(2, 3), (3, 3), (4, 2), (11, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
def test_exact_is_the_penalty_of_the_dense_operator(channels, stride, kernel_size):
    weight = random_weight(*channels, kernel_size, kernel_size)
    expected = dense_penalty(weight, (stride, stride))
    torch.testing.assert_close(orthogonality_loss(weight, stride, mode="exact"), expected)


@pytest.mark.parametrize("channels", [(2, 3), (3, 3), (4, 2), (11, 1)])
@pytest.mark.parametrize(
    "kernel_size, stride", [((1, 3), (1, 2)), ((3, 2), (2, 1)), ((5, 1), (3, 2)), ((3, 4), (1, 1))]
)
def test_exact_with_rectangular_kernels_and_strides(channels, kernel_size, stride):
    weight = random_weight(*channels, *kernel_size)
    expected = dense_penalty(weight, stride)
    torch.testing.assert_close(orthogonality_loss(weight, stride, mode="exact"), expected)


@pytest.mark.parametrize("channels", [(2, 3), (3, 3), (4, 2)])
@pytest.mark.parametrize(
    "kernel_size, stride", [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (4, 1), (5, 1), (5, 2), (7, 3)]
)
def test_paper_is_the_paper_s_formula(channels, kernel_size, stride):
    weight = random_weight(*channels, kernel_size, kernel_size)
    torch.testing.assert_close(orthogonality_loss(weight, stride), paper_formula(weight, stride))


def test_paper_samples_the_multiples_of_the_stride_where_the_paper_s_code_misses_zero():
    weight = random_weight(3, 3, 4, 4)
    gram = F.conv2d(weight, weight, padding=3)[:, :, 1::2, 1::2]  # shifts -2, 0, 2 of -3 ... 3
    gram[:, :, 1, 1] -= torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(orthogonality_loss(weight, 2), 0.5 * gram.square().sum())


@pytest.mark.parametrize("mode", ["paper", "exact"])
@pytest.mark.parametrize("stride", [1, 2])
def test_groups_are_convolutions_of_their_own(mode, stride):
    weight = random_weight(6, 2, 3, 3)
    expected = sum(orthogonality_loss(group, stride, mode=mode) for group in weight.chunk(3))
    torch.testing.assert_close(orthogonality_loss(weight, stride, groups=3, mode=mode), expected)


@pytest.mark.parametrize("channels", [(2, 1), (1, 2), (5, 1)])
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_exact_of_a_transposed_convolution(channels, kernel_size):
    """Its operator, from the module itself, is A^T of the penalised A."""
    conv = nn.ConvTranspose2d(*channels, kernel_size, stride=2, bias=False, dtype=torch.float64)
    nn.init.normal_(conv.weight)
    in_channels, out_channels = channels
    basis = torch.eye(in_channels * 9, dtype=torch.float64).view(-1, in_channels, 3, 3)
    full = conv(basis).detach()  # (basis, C_out, 4 + k, 4 + k): what hangs over the 6 x 6 grid wraps around
    wrapped = torch.zeros(len(basis), out_channels, 6, 6, dtype=torch.float64)
    for y in range(full.shape[2]):
        for x in range(full.shape[3]):
            wrapped[:, :, y % 6, x % 6] += full[:, :, y, x]
    t = wrapped.flatten(1).T
    gram = t.T @ t if t.shape[1] <= t.shape[0] else t @ t.T
    expected = 0.5 * (gram - torch.eye(len(gram), dtype=torch.float64)).square().sum() / 9
    torch.testing.assert_close(orthogonality_losses([conv], mode="exact")[0], expected)
    value = orthogonality_loss(conv.weight, 2, transposed=True, mode="exact")
    torch.testing.assert_close(value, expected)


def test_the_two_sides_differ_by_a_constant_at_stride_1():
    weight = random_weight(5, 2, 3, 3)
    gram = F.conv2d(weight, weight, padding=2)
    gram[:, :, 2, 2] -= torch.eye(5, dtype=torch.float64)
    over_outputs = 0.5 * gram.square().sum()
    torch.testing.assert_close(
        over_outputs - orthogonality_loss(weight), torch.tensor(1.5, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "shape, stride, init_stride, paper, exact",
    [
        ((3, 3, 3, 3), 1, 1, 0, 0),
        ((2, 4, 3, 3), 2, 1, 0, 0),
        ((4, 2, 1, 1), 2, 1, 0, 0),  # reads 2 of 8 pixels, keeps both
        ((4, 2, 3, 3), 2, 1, 0, 1),  # two of four outputs are zero: 1/2 * 2
        ((4, 2, 3, 3), 2, 2, 1, 0),  # each input has two copies: 1/2 * 2 * (2 - 1)^2
        ((9, 2, 3, 3), 2, 2, 9, 0),  # of eight pixels read, all are kept; four copies: 1/2 * 2 * (4 - 1)^2
    ],
)
def test_delta_by_hand(shape, stride, init_stride, paper, exact):
    weight = delta_init_(torch.empty(shape), init_stride)
    for mode, expected in (("paper", paper), ("exact", exact)):
        value = orthogonality_loss(weight, stride, mode=mode)
        torch.testing.assert_close(value, torch.tensor(float(expected)), atol=1e-6, rtol=1e-6)


def test_scaled_delta_by_hand():
    weight = 3 * delta_init_(torch.empty(5, 5, 3, 3))
    torch.testing.assert_close(orthogonality_loss(weight), torch.tensor(0.5 * 5 * (9 - 1) ** 2))


@pytest.mark.parametrize("mode", ["paper", "exact"])
@pytest.mark.parametrize(
    "shape, stride, groups",
    [
        ((3, 2, 1, 1), 1, 1),
        ((2, 3, 2, 2), 1, 1),
        ((3, 2, 3, 3), 1, 1),
        ((2, 2, 3, 3), 2, 1),
        ((3, 1, 3, 3), 2, 1),
        ((5, 1, 2, 2), 2, 1),
        ((2, 2, 1, 4), (1, 3), 1),
        ((4, 1, 3, 3), 1, 2),
    ],
)
def test_gradient(mode, shape, stride, groups):
    weight = random_weight(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: orthogonality_loss(w, stride, groups, mode=mode), weight)


def convs():
    return nn.ModuleList(
        [
            nn.Conv2d(4, 6, 3),
            nn.Conv2d(6, 4, 1, bias=False),
            nn.Conv2d(4, 6, 3),
            nn.Conv2d(4, 6, 3, stride=2),
            nn.ConvTranspose2d(6, 4, 3),
            nn.Conv2d(8, 12, 3, groups=2),
            nn.Conv2d(8, 12, 3, groups=2),
            nn.Conv2d(4, 6, 3, dilation=2),
        ]
    ).double()


def test_losses_of_many_convolutions_and_their_gradients():
    layers, factors = convs(), torch.randn(8, dtype=torch.float64)
    values = orthogonality_losses(layers)
    (values * factors).sum().backward()
    for conv, value, factor in zip(layers, values, factors, strict=True):
        weight = conv.weight.detach().clone().requires_grad_()
        expected = sum(paper_formula(w, conv.stride) for w in weight.chunk(conv.groups))
        torch.testing.assert_close(value, expected)
        (grad,) = torch.autograd.grad(factor * expected, weight)
        torch.testing.assert_close(conv.weight.grad, grad)


def test_frozen_convolutions_get_a_value_only():
    layers = convs()
    expected = orthogonality_losses(layers).detach()
    layers[0].requires_grad_(False)
    values = orthogonality_losses(layers)
    torch.testing.assert_close(values.detach(), expected)
    values.sum().backward()
    assert layers[0].weight.grad is None and layers[2].weight.grad is not None
    assert not orthogonality_losses(layers.requires_grad_(False)).requires_grad


def test_backward_keeps_one_gradient_of_each_convolution_that_is_not_frozen():
    layers, kept = convs(), []
    layers[0].requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        orthogonality_losses(layers)
    assert sum(kept) == sum(conv.weight.numel() for conv in layers[1:])


def test_the_number_of_layers_worked_on_at_once_does_not_matter(monkeypatch):
    layers = convs()
    expected = orthogonality_losses(layers)
    monkeypatch.setattr(orthogonality, "_weights_at_once", lambda device: 1)
    torch.testing.assert_close(orthogonality_losses(layers), expected)


def test_no_convolutions():
    assert orthogonality_losses([]).shape == (0,)


@pytest.mark.parametrize(
    "shape, stride", [((64, 64, 3, 3), 1), ((1024, 512, 1, 1), 1), ((32, 64, 3, 3), 2), ((16, 16, 5, 5), 1)]
)
def test_float32_is_precise(shape, stride):
    weight = random_weight(*shape, dtype=torch.float32).requires_grad_()
    double = weight.detach().double().requires_grad_()
    value, expected = orthogonality_loss(weight, stride), orthogonality_loss(double, stride)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    value.backward()
    expected.backward()
    assert (weight.grad - double.grad).norm() < 1e-5 * double.grad.norm()


def test_half_precision_and_autocast_are_worked_with_in_float32():
    conv = nn.Conv2d(8, 8, 3)
    half = copy.deepcopy(conv).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value, half_value = orthogonality_losses([conv, half])
    torch.testing.assert_close(value, paper_formula(conv.weight))
    torch.testing.assert_close(half_value, paper_formula(half.weight.float()))
    half_value.backward()
    assert half.weight.grad.dtype == torch.bfloat16


def test_second_derivatives_are_refused():
    weight = random_weight(2, 2, 3, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(orthogonality_loss(weight), weight, create_graph=True)


@pytest.mark.parametrize(
    "shape, stride, size", [((2, 3, 3, 3), 1, 5), ((2, 3, 3, 3), 2, 3), ((2, 3, 4, 4), 2, 3)]
)
def test_gram_entries_by_their_definition(shape, stride, size):
    weight = random_weight(*shape)
    k = shape[-1]
    gram = conv_gram(weight, stride)
    assert gram.shape == (2, 2, size, size)
    middle = size // 2
    for m, n, y, x in [(0, 0, 0, 0), (0, 1, 1, -1), (1, 0, -1, 0), (1, 1, 0, 1)]:
        dy, dx = y * stride, x * stride
        expected = sum(
            (weight[m, :, i + dy, j + dx] * weight[n, :, i, j]).sum()
            for i in range(k)
            for j in range(k)
            if 0 <= i + dy < k and 0 <= j + dx < k
        )
        torch.testing.assert_close(gram[m, n, middle + y, middle + x], expected)


def test_bad_arguments():
    weight = torch.empty(4, 4, 3, 3)
    with pytest.raises(ValueError, match="must be 'paper' or 'exact', got 'fast'"):
        orthogonality_loss(weight, mode="fast")
    with pytest.raises(ValueError, match="must be 'paper' or 'exact', got 'fast'"):
        orthogonality_losses([], mode="fast")
    with pytest.raises(ValueError, match=r"must have 4 dimensions .*, got shape \(4, 4\)"):
        orthogonality_loss(torch.empty(4, 4))
    with pytest.raises(ValueError, match="4 dimensions"):
        conv_gram(torch.empty(4, 4, 3))
    with pytest.raises(ValueError, match="groups must divide the 4 output channels of the weight, got 3"):
        orthogonality_loss(weight, groups=3)
    with pytest.raises(ValueError, match="stride must be a positive int or 2 of them, got 0"):
        orthogonality_loss(weight, stride=0)
    with pytest.raises(TypeError, match="got Conv1d"):
        orthogonality_losses([nn.Conv1d(2, 2, 3)])
