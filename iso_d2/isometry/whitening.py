"""A first convolution that is an isometry in the metric of the images' own covariance.

Project report, section 7: <A x, A x'> = <x, x'>_M, here with M the inverse of the patches' second moments, so
that the principal components of a patch, which differ in size by orders of magnitude, come out alike. Patch
whitening: Coates, Lee, Ng, AISTATS 2011, section 3.1.2; as a fixed first convolution: Jordan, 2024,
https://arxiv.org/abs/2404.00498, section 3.2.
"""

import torch
from torch.nn import functional as F

from ._conv import check_weight


def patch_moments(images, kernel_size, stride=1, dilation=1):
    """The second moments of the patches that a convolution without padding reads.

    Patches that are 0 throughout are left out: images of different sizes are padded with them.

    Args:
        images (Tensor): (N, C, H, W), any floating dtype.
        kernel_size, stride, dilation (int or (int, int)): of the convolution.

    Returns:
        tuple: Tensor (E, E) of float64 with E = C * kh * kw, the sum of p p^T over the patches p, in the
        order of a weight's (C, kh, kw); and int, the number of patches.

    Raises:
        ValueError: images of another rank.
    """
    if images.dim() != 4:
        raise ValueError(f"patch_moments takes images (N, C, H, W), got shape {tuple(images.shape)}")
    total, count = 0.0, 0
    for image in images.detach().float():  # one at a time: a patch has many times the values of its pixel
        patches = F.unfold(image[None], kernel_size, dilation=dilation, stride=stride)[0]
        patches = patches[:, (patches != 0).any(0)]
        total = total + (patches @ patches.T).double()
        count += patches.shape[1]
    return total, count


@torch.no_grad()
def whiten_(weight, moments, eps=0.01, generator=None):
    """Set a convolution weight to whiten patches, in place.

    With the second moments S = U diag(l) U^T of the patches, l_1 >= l_2 >= ..., the M outputs are the first M
    principal components at the same size,

        W = diag(l_i + eps * l)^(-1/2) U^T,    l the mean of all l_i,

    each of mean square l_i / (l_i + eps * l), just below 1, and uncorrelated. With M > E = C * kh * kw the E
    components are spread over all outputs by a random isometry. Up to eps, <W p, W p'> = <p, p'>_{S^-1} on
    what is kept.

    Args:
        weight (Tensor): (M, C, kh, kw).
        moments (Tensor): S, (E, E), such as the sum of :func:`patch_moments` divided by its count.
        eps (float): what counts as noise, as a share of the patches' mean square.
        generator (torch.Generator or None): for M > E; None: PyTorch's own.

    Returns:
        Tensor: `weight`.

    Raises:
        ValueError: moments of another shape, not finite, or 0.
    """
    check_weight(weight)
    size = weight[0].numel()
    if moments.shape != (size, size):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} needs moments of shape ({size}, {size}), got "
            f"{tuple(moments.shape)}"
        )
    moments = moments.double().cpu()  # the same result on every device
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
