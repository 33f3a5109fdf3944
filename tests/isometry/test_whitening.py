"""Whitening against sums over patches that are cut out one by one, and against its own definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from iso_d2.isometry import patch_moments, whiten_


def smooth_images(*shape, seed=0):
    """Pixels and channels that depend on each other, as those of photographs do."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.avg_pool2d(x.cumsum(1), 3, stride=1, padding=1)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation"), [((3, 3), 1, 1), ((7, 7), 2, 1), ((2, 3), (2, 1), (1, 2))]
)
def test_moments_are_those_of_the_patches_that_the_convolution_reads(kernel_size, stride, dilation):
    images = smooth_images(2, 3, 11, 13)
    moments, count = patch_moments(images, kernel_size, stride, dilation)
    (kh, kw), (sh, sw), (dh, dw) = (
        (v, v) if isinstance(v, int) else v for v in (kernel_size, stride, dilation)
    )
    patches = []
    for image in images.numpy():
        for top in range(0, 11 - dh * (kh - 1), sh):
            for left in range(0, 13 - dw * (kw - 1), sw):
                cut = image[:, top : top + dh * kh : dh, left : left + dw * kw : dw]
                assert cut.shape == (3, kh, kw)
                patches.append(cut.ravel())
    expected = np.stack(patches).T @ np.stack(patches)
    assert count == len(patches)
    torch.testing.assert_close(moments, torch.from_numpy(expected), rtol=1e-5, atol=1e-4)

    # the weight is applied to the patches in this order
    weight = torch.randn(4, 3, kh, kw, dtype=torch.float64)
    outputs = F.conv2d(images, weight, stride=stride, dilation=dilation)
    by_patch = weight.flatten(1) @ moments @ weight.flatten(1).T
    torch.testing.assert_close(
        by_patch, torch.einsum("nahw,nbhw->ab", outputs, outputs), rtol=1e-4, atol=1e-3
    )


def test_large_images_are_looked_at_in_part():
    images = smooth_images(1, 1, 131, 259)
    moments, count = patch_moments(images, 3, 2)
    assert count == 33 * 65  # of 65 * 129 every second on each axis
    expected, same = patch_moments(images, 3, 4)
    assert same == count and torch.equal(moments, expected)


def test_padding_does_not_count():
    images = smooth_images(1, 3, 9, 9)
    moments, count = patch_moments(images, 3)
    padded, padded_count = patch_moments(F.pad(images, (0, 40, 0, 30)), 3)
    # the patches that reach over the edge do
    assert count == 49 and padded_count == 81
    assert (padded - moments).diagonal().min() > -1e-5


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (27, 3, 3, 3), (40, 3, 3, 3), (6, 1, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_are_uncorrelated_and_of_one_size(shape, dtype):
    images = smooth_images(30, shape[1], 12, 12)
    moments, count = patch_moments(images, shape[2:])
    moments /= count
    weight = torch.empty(shape, dtype=dtype)
    assert whiten_(weight, moments, generator=torch.Generator().manual_seed(3)) is weight
    matrix = weight.flatten(1).double()
    size = len(moments)
    noise = 0.01 * moments.trace() / size
    values = torch.linalg.eigvalsh(moments).flip(0)
    exact = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    if shape[0] <= size:
        outputs = matrix @ moments @ matrix.T
        expected = (values / (values + noise))[: shape[0]]
        torch.testing.assert_close(outputs, expected.diag(), **exact)
        assert expected.min() > 0.3
    if shape[0] >= size:  # <W p, W p'> = <p, p'>_M with M the inverse of the moments and their noise
        metric = torch.linalg.inv(moments + noise * torch.eye(size, dtype=torch.float64))
        torch.testing.assert_close(matrix.T @ matrix, metric, **exact)


def test_channels_that_grey_images_leave_empty_are_counted(log):
    """Of 27 components of 3x3 patches three equal channels have 9: of 16 outputs 7 are 0."""
    images = smooth_images(30, 1, 12, 12).expand(-1, 3, -1, -1)
    moments, count = patch_moments(images, 3)
    weight = whiten_(torch.empty(16, 3, 3, 3, dtype=torch.float64), moments / count)
    assert "7 of the 16 whitened channels of a convolution are near 0" in log.text
    outputs = F.conv2d(images, weight).square().mean((0, 2, 3))
    assert (outputs < 0.01).tolist() == [False] * 9 + [True] * 7
    log.clear()
    moments, count = patch_moments(smooth_images(30, 3, 12, 12), 3)
    whiten_(torch.empty(16, 3, 3, 3), moments / count)
    assert not log.text


def test_bad_input():
    with pytest.raises(ValueError, match=r"takes images \(N, C, H, W\), got shape \(3, 8, 8\)"):
        patch_moments(torch.zeros(3, 8, 8), 3)
    weight = torch.empty(4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"needs moments of shape \(27, 27\), got \(9, 9\)"):
        whiten_(weight, torch.eye(9))
    for moments in (torch.full((27, 27), float("nan")), torch.zeros(27, 27)):
        with pytest.raises(ValueError, match="not finite, or all 0"):
            whiten_(weight, moments)
    with pytest.raises(ValueError, match="eps above 0"):
        whiten_(weight, torch.eye(27), eps=0)
    with pytest.raises(ValueError, match="must have 4 dimensions"):
        whiten_(weight[0], torch.eye(9))
