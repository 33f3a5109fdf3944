import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from dense_operator import dense_operator

from iso_d2.isometry import delta_init_, orthogonal_init_, orthogonality_loss


@pytest.mark.parametrize(
    "kernel_size", [(1,), (4,), (1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (3, 2), (3, 3, 3)]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_plain_delta_is_the_identity(kernel_size, groups):
    weight = torch.randn(4, 4 // groups, *kernel_size)
    assert delta_init_(weight, groups=groups) is weight
    conv = [F.conv1d, F.conv2d, F.conv3d][len(kernel_size) - 1]
    x = torch.randn(2, 4, *[8] * len(kernel_size))
    y = conv(x, weight, padding=[k // 2 for k in kernel_size], groups=groups)
    # an even kernel makes one row and column more
    assert torch.equal(y[(slice(None), slice(None), *[slice(8)] * len(kernel_size))], x)


def test_plain_delta_copies_the_channels_that_both_sides_have():
    narrow = delta_init_(torch.randn(2, 3, 3, 3))
    wide = delta_init_(torch.randn(3, 2, 3, 3))
    assert narrow.nonzero().tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert wide.nonzero().tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert narrow.sum() == wide.sum() == 2


def test_each_group_has_its_own_delta():
    weight = delta_init_(torch.randn(6, 2, 1, 1), groups=2)
    assert weight.flatten(1).nonzero().tolist() == [[0, 0], [1, 1], [3, 0], [4, 1]]


def test_strided_delta_by_hand():
    weight = delta_init_(torch.randn(6, 2, 3, 3), stride=2)
    # outputs 0, 1: the centre; 2, 3: the pixel on its right; 4, 5: the pixel below
    assert weight.nonzero().tolist() == [
        [0, 0, 1, 1],
        [1, 1, 1, 1],
        [2, 0, 1, 2],
        [3, 1, 1, 2],
        [4, 0, 2, 1],
        [5, 1, 2, 1],
    ]


@pytest.mark.parametrize("kernel_size", [(2, 2), (3, 3), (4, 4), (5, 5), (7, 7), (3, 2)])
@pytest.mark.parametrize("stride", [2, (1, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_strided_delta_is_an_isometry(kernel_size, stride, transposed):
    for outputs, groups in itertools.product((2, 3, 5, 12, 14), (1, 2)):
        weight = torch.empty(outputs * groups, 3, *kernel_size)
        a = dense_operator(delta_init_(weight, stride, groups, transposed), (4, 4), stride, groups)
        gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
        assert torch.equal(gram, torch.eye(len(gram))), (outputs, groups)


@pytest.mark.parametrize(
    "kernel_size, padding, output_padding", [(2, 0, 0), (6, 2, 0), (4, 1, 0), (3, 1, 1), (5, 2, 1)]
)
def test_transposed_delta_puts_each_pixel_where_a_strided_delta_read_it(kernel_size, padding, output_padding):
    up = delta_init_(torch.empty(3, 3, kernel_size, kernel_size), transposed=True)
    x = torch.randn(1, 3, 4, 4)
    y = F.conv_transpose2d(x, up, stride=2, padding=padding, output_padding=output_padding)
    expected = torch.zeros(1, 3, 8, 8)
    expected[:, :, ::2, ::2] = x
    assert torch.equal(y, expected)
    down = delta_init_(torch.empty(3, 3, 3, 3))
    assert torch.equal(F.conv2d(y, down, stride=2, padding=1), x)


def test_a_parameter_stays_a_leaf():
    conv = torch.nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    delta_init_(conv.weight)
    assert conv.weight.is_leaf and conv.weight.requires_grad
    assert conv.weight.sum() == 2


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"3 or 4 or 5 dimensions .* got shape \(4, 4\)"):
        delta_init_(torch.empty(4, 4))
    with pytest.raises(ValueError, match="groups must divide the 4 output channels of the weight, got 3"):
        delta_init_(torch.empty(4, 4, 1, 1), groups=3)
    with pytest.raises(ValueError, match="the 4 input channels"):
        delta_init_(torch.empty(4, 4, 1, 1), groups=3, transposed=True)
    with pytest.raises(ValueError, match=r"stride must be a positive int or 2 of them, got \(1, 2, 3\)"):
        delta_init_(torch.empty(4, 4, 1, 1), stride=(1, 2, 3))


@pytest.mark.parametrize("kernel_size", [(1, 1), (2, 2), (3, 3), (4, 4), (7, 7), (3, 2)])
@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_orthogonal_is_a_dense_isometry(kernel_size, stride, transposed):
    strides = (stride, stride) if isinstance(stride, int) else stride
    taps_read = math.prod(map(min, kernel_size, strides))
    for outputs, groups, all_taps in itertools.product((2, 3, 5, 14), (1, 2), (False, True)):
        weight = torch.empty(outputs * groups, 3, *kernel_size, dtype=torch.float64)
        assert orthogonal_init_(weight, stride, groups, transposed, all_taps) is weight
        values = torch.linalg.svdvals(dense_operator(weight, (4, 4), stride, groups))
        # a stride beyond the kernel leaves pixels unread, whose singular values are 0
        values = values[values > 1e-9]
        torch.testing.assert_close(values, torch.ones_like(values))
        assert len(values) == min(outputs, 3 * taps_read) * groups * 16 // math.prod(strides)
        assert orthogonality_loss(weight, stride, groups, mode="exact") < 1e-20
        # every channel is read, and gets something
        assert weight.flatten(1).norm(dim=1).min() > 1e-3


def test_orthogonal_is_random_and_repeatable():
    draws = [
        orthogonal_init_(torch.empty(4, 4, 3, 3), generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].abs().sum((0, 1)).nonzero().tolist() == [[1, 1]]  # the centre tap alone


@pytest.mark.parametrize("stride", [1, 2])
def test_orthogonal_of_half_precision(stride):
    weight = orthogonal_init_(torch.empty(4, 8, 3, 3, dtype=torch.bfloat16), stride)
    assert orthogonality_loss(weight, stride, mode="exact") < 1e-3


def test_orthogonal_over_all_taps():
    weight = orthogonal_init_(torch.empty(16, 16, 3, 3), all_taps=True)
    shares = weight.square().sum((0, 1)) / 16
    # each axis has 1, 2, 1 quarters of the square on average
    expected = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.06)
    # a single channel can only be moved: not at all
    assert orthogonal_init_(torch.empty(1, 1, 3, 3), all_taps=True).abs().flatten().argmax() == 4


def test_orthogonal_up_convolution_spreads_each_pixel_over_its_block():
    up = orthogonal_init_(torch.empty(4, 2, 6, 6), stride=2, transposed=True)
    x = torch.randn(1, 4, 3, 3)
    y = F.conv_transpose2d(x, up, stride=2, padding=2)
    torch.testing.assert_close(F.avg_pool2d(y.square().sum(1), 2) * 4, x.square().sum(1))
