import pytest
import torch
from dense_operator import dense_operator

from iso_d2.isometry import conv_singular_values, delta_init_, isometry_error

CASES = [
    # weight, input size, stride, groups
    ((2, 3, 1, 1), 4, 1, 1),
    ((3, 3, 3, 3), 4, 1, 1),
    ((5, 2, 3, 3), (5, 4), 1, 1),
    ((3, 2, 2, 2), 5, 1, 1),
    ((3, 3, 3, 3), 6, 2, 1),
    ((9, 2, 3, 3), 4, 2, 1),
    ((4, 2, 1, 1), 4, 2, 1),
    ((4, 2, 5, 5), 6, 3, 1),
    ((2, 2, 3, 1), (4, 6), (1, 3), 1),
    ((6, 2, 3, 3), 4, 2, 2),
    ((4, 1, 3, 3), 3, 1, 4),
    ((2, 2, 5, 5), 3, 1, 1),
    ((2, 3, 7, 7), 2, 2, 1),
]


@pytest.mark.parametrize("shape, size, stride, groups", CASES)
def test_singular_values_are_the_dense_matrix_s(shape, size, stride, groups):
    weight = torch.randn(shape, dtype=torch.float64)
    grid = (size, size) if isinstance(size, int) else size
    expected = torch.linalg.svdvals(dense_operator(weight, grid, stride, groups))
    values = conv_singular_values(weight, size, stride, groups)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)


def test_half_precision_is_worked_with_in_float32():
    weight = torch.randn(2, 2, 3, 3).bfloat16().requires_grad_()
    values = conv_singular_values(weight, 4)
    assert values.dtype == torch.float32 and not values.requires_grad
    torch.testing.assert_close(values, conv_singular_values(weight.float(), 4))


@pytest.mark.parametrize("shape, stride", [((3, 3, 3, 3), 1), ((2, 4, 3, 3), 2), ((4, 2, 3, 3), 1)])
def test_error_is_zero_at_the_plain_delta_and_scales_with_it(shape, stride):
    weight = delta_init_(torch.empty(shape))
    assert isometry_error(weight, 6, stride) < 1e-6
    torch.testing.assert_close(isometry_error(1.25 * weight, 6, stride), torch.tensor(0.25))


def test_error_of_a_strided_delta():
    weight = torch.empty(6, 2, 3, 3)
    assert isometry_error(delta_init_(weight, stride=2), 4, stride=2) < 1e-6
    # outputs 2 to 5 of the plain delta are zero
    torch.testing.assert_close(isometry_error(delta_init_(weight), 4, stride=2), torch.tensor(1.0))


def test_error_counts_only_the_pixels_that_a_1x1_stride_2_convolution_reads():
    q, _ = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))
    weight = q.view(6, 2, 1, 1)
    values = conv_singular_values(weight, 4, stride=2)
    assert len(values) == 24 and (values < 1e-12).sum() == 16
    assert isometry_error(weight, 4, stride=2) < 1e-12


def test_bad_arguments():
    weight = torch.empty(4, 4, 3, 3)
    with pytest.raises(ValueError, match=r"divisible by the stride \(2, 2\), got \(5, 5\)"):
        conv_singular_values(weight, 5, stride=2)
    with pytest.raises(ValueError, match="groups must divide the 4 output channels of the weight, got 3"):
        isometry_error(weight, 4, groups=3)
    with pytest.raises(ValueError, match="4 dimensions"):
        conv_singular_values(weight[0], 4)
    with pytest.raises(ValueError, match="input_size must be a positive int or 2 of them, got 0"):
        conv_singular_values(weight, 0)
