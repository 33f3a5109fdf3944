"""A first convolution that is an isometry in the metric of the images' own covariance.

Project report, section 7: <A x, A x'> = <x, x'>_M, here with M the inverse of the patches' second moments, so
that the principal components of a patch, which differ in size by orders of magnitude, come out alike. Patch
whitening: Coates, Lee, Ng, AISTATS 2011, section 3.1.2; as a fixed first convolution: Jordan, 2024,
https://arxiv.org/abs/2404.00498, section 3.2.
"""

import math

import torch
from torch.nn import functional as F

from ._conv import check_weight, per_axis

# Of an image at most about so many patches are looked at
MOST_PATCHES = 4096


def patch_moments(images, kernel_size, stride=1, dilation=1):
    """The second moments of the patches that a convolution without padding reads.

    Patches that are 0 throughout do not count: images of different sizes are padded with them. Of an image
    with more than 4096 patches every second is taken on each axis, or every third, and so on.

    Args:
        images (Tensor): (N, C, H, W), any floating dtype.
        kernel_size, stride, dilation (int or (int, int)): of the convolution.

    Returns:
        tuple: Tensor (E, E) of float64 on the CPU with E = C * kh * kw, the sum of p p^T over the patches p,
        in the order of a weight's (C, kh, kw); and int, the number of patches.

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
def whiten_(weight, moments, eps=0.01, generator=None):
    """Set a convolution weight to whiten patches, in place.

    With the second moments S = U diag(l) U^T of the patches, l_1 >= l_2 >= ..., the M outputs are the first M
    principal components at the same size,

        W = diag(l_i + eps * l)^(-1/2) U^T,    l the mean of all l_i,

    each of mean square l_i / (l_i + eps * l), just below 1 unless the component is noise, and uncorrelated.
    With M > E = C * kh * kw the E components are spread over all outputs by a random isometry. Up to eps,
    <W p, W p'> = <p, p'>_{S^-1} on what is kept.

    Args:
        weight (Tensor): (M, C, kh, kw).
        moments (Tensor): S, (E, E), such as the sum of :func:`patch_moments` divided by its count.
        eps (float): what counts as noise, above 0, as a share of the patches' mean square.
        generator (torch.Generator or None): for M > E; None: PyTorch's own.

    Returns:
        Tensor: `weight`.

    Raises:
        ValueError: moments of another shape, not finite, or 0; eps that is not above 0.
    """
    check_weight(weight)
    if not eps > 0:
        raise ValueError(f"whiten_ needs eps above 0, or noise would have weights without a bound, got {eps}")
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
    if len(weight) > size:
        spread = torch.empty(len(weight), size, dtype=torch.float64)
        components = torch.nn.init.orthogonal_(spread, generator=generator).to(components) @ components
    weight.copy_(components.view(weight.shape))
    return weight
