"""The oracle of these tests: a convolution as a matrix, from its action on the identity basis."""

import torch
import torch.nn.functional as F


def dense_operator(weight, size, stride=1, groups=1):
    """The (M * H/s * W/s, C * H * W) matrix of a circular convolution on an H x W grid."""
    height, width = size
    kh, kw = weight.shape[-2:]
    channels = weight.shape[1] * groups
    basis = torch.eye(channels * height * width, dtype=weight.dtype).view(-1, channels, height, width)
    around = basis[:, :, torch.arange(height + kh - 1) % height][..., torch.arange(width + kw - 1) % width]
    return F.conv2d(around, weight, stride=stride, groups=groups).flatten(1).T
