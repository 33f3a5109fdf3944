"""A first convolution that is an isometry in the metric of the images' own covariance.

Project report, section 7: <A x, A x'> = <x, x'>_M. Here M is the inverse of the patches' second moments. So
the principal components of a patch, whose sizes differ by orders of magnitude, all get the same size. Patch
whitening: Coates, Lee, Ng, AISTATS 2011, section 3.1.2; as a fixed first convolution: Jordan, 2024,
https://arxiv.org/abs/2404.00498, section 3.2.
"""

import logging
import math

import torch
from torch.nn import functional as F

from ._conv import check_weight, per_axis

# About the most patches that are read from one image
MOST_PATCHES = 4096

logger = logging.getLogger(__name__)


def patch_moments(images, kernel_size, stride=1, dilation=1):
    """The second moments of the patches that a convolution without padding reads.

    Patches of zeros do not count, since images of different sizes are padded with zeros. If an image has more
    than 4096 patches, only every second, third, ... along each axis is read.

    Args:
        images (Tensor): (N, C, H, W), any floating dtype.
        kernel_size, stride, dilation (int or (int, int)): of the convolution.

    Returns:
        tuple: the sum of p p^T over the patches p, float64 on the CPU, (E, E) with E = C * kh * kw in the
        order of a weight's (C, kh, kw); and the number of patches, an int.

    Raises:
        ValueError: images of another rank, or smaller than the kernel.
    """
    if images.dim() != 4:
        raise ValueError(f"patch_moments takes images (N, C, H, W), got shape {tuple(images.shape)}")
    kernel_size, stride, dilation = (
        per_axis(name, value, 2)
        for name, value in (("kernel size", kernel_size), ("stride", stride), ("dilation", dilation))
    )
    sizes = zip(images.shape[2:], kernel_size, stride, dilation, strict=True)
    along = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes]
    if min(along) < 1:
        raise ValueError(
            f"a kernel of size {kernel_size} reads more than images of {tuple(images.shape[2:])} pixels: "
            "take larger ones"
        )
    step = math.ceil(math.sqrt(math.prod(along) / MOST_PATCHES))
    stride = tuple(step * s for s in stride)
    size = images.shape[1] * math.prod(kernel_size)
    total, count = torch.zeros(size, size, dtype=torch.float64), 0
    for image in images.detach().float():  # one at a time: a patch has many times the values of its pixel
        patches = F.unfold(image[None], kernel_size, dilation=dilation, stride=stride)[0]
        total += (patches @ patches.T).cpu().double()
        count += int((patches != 0).any(0).sum())
    return total, count


@torch.no_grad()
def whiten_(weight, moments, eps=0.01, generator=None, layer="a convolution"):
    """Set a convolution weight to whiten patches, in place.

    With the second moments S = U diag(l) U^T of the patches, l_1 >= l_2 >= ..., the M outputs are the first M
    principal components, scaled to the same size,

        W = diag(l_i + eps * l)^(-1/2) U^T,    l the mean of all l_i.

    They are uncorrelated. Each has the mean square l_i / (l_i + eps * l), just below 1 unless it is noise. A
    warning says how many outputs are near 0, as with grey images. If M > E = C * kh * kw, a random isometry
    spreads the E components over all outputs. Up to eps, <W p, W p'> = <p, p'>_{S^-1} on the kept components.

    Args:
        weight (Tensor): (M, C, kh, kw).
        moments (Tensor): S, (E, E), such as the sum of :func:`patch_moments` divided by its count.
        eps (float): the noise level, above 0, as a share of the patches' mean square.
        generator (torch.Generator or None): for M > E; None: PyTorch's default.
        layer (str): the convolution's name in the warning.

    Returns:
        Tensor: `weight`.

    Raises:
        ValueError: moments of another shape, not finite, or 0; eps that is not above 0.
    """
    check_weight(weight)
    if not eps > 0:
        raise ValueError(f"whiten_ needs eps above 0, or noise would get weights without bound, got {eps}")
    size = weight[0].numel()
    if moments.shape != (size, size):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} needs moments of shape ({size}, {size}), got "
            f"{tuple(moments.shape)}"
        )
    moments = moments.cpu().double()  # the same result on every device
    mean = moments.trace() / size
    if not (torch.isfinite(moments).all() and mean > 0):
        raise ValueError("the patches' second moments are not finite, or all 0: look at the images")
    values, vectors = torch.linalg.eigh(moments)
    components = (vectors / (values.clamp(min=0) + eps * mean).sqrt()).T.flip(0)[: len(weight)]
    # a hundredth of the noise level: an output whose mean square is below 1 %
    empty = int((values.flip(0)[: len(weight)] < 0.01 * eps * mean).sum())
    if empty and len(weight) <= size:
        logger.warning(
            "%d of the %d whitened channels of %s are near 0, since the images have nothing there: are they "
            "grey?",
            *(empty, len(weight), layer),
        )
    if len(weight) > size:
        spread = torch.empty(len(weight), size, dtype=torch.float64)
        components = torch.nn.init.orthogonal_(spread, generator=generator).to(components) @ components
    weight.copy_(components.view(weight.shape))
    return weight
