"""A penalty on the largest singular values of convolutions that leaves all others free.

After spectral norm regularisation (Yoshida, Miyato, 2017, https://arxiv.org/abs/1705.10941). What differs:
the power iteration runs at every frequency of the convolution itself, not on the flattened kernel, and only
what exceeds a bound counts.
"""

import math

import torch

from ._conv import group_by_kind, losses_by_kind
from ._tables import complex_product_table, spectral_tables


class SpectralPenalty:
    """How far the largest singular values of convolutions exceed a bound.

        L = 1 / (2 N) sum over the N frequencies f of max(0, sigma_1(f)^2 - tau^2)^2

    sigma_1(f) is the largest singular value at frequency f, on the (2k - 1) x (2k - 1) grid of the penalty
    with ``mode="exact"``. A strided convolution is taken by its polyphase components. For a singular value
    above tau the gradient is that of `orthogonality_loss`; below tau it is 0. A dilation coprime to the
    stride changes nothing.

    The singular vectors come from power iteration. Each call makes one step from the vectors of the call
    before, since the weights change slowly; the first call makes 20. So sigma_1 is estimated from below.

    Args:
        convs (iterable[nn.Conv2d | nn.ConvTranspose2d]): their weights count without gains.
        bound (float): tau.
        seed (int): for the vectors that the iteration starts from.

    Raises:
        TypeError: anything but those modules.
        ValueError: a bound that is not a finite number above 0.
    """

    FIRST_STEPS = 20

    def __init__(self, convs, bound=1.3, seed=0):
        if not (math.isfinite(bound) and bound > 0):
            raise ValueError(f"the bound of singular values must be a finite number above 0, got {bound}")
        self.bound = bound
        self.seed = seed
        self._convs = list(convs)
        # power iteration's vectors of each kind of convolution
        self._vectors = dict.fromkeys(group_by_kind(self._convs, "SpectralPenalty"))

    def __call__(self):
        """The penalty of each convolution, without a coefficient.

        Returns:
            Tensor: (len(convs),), float32 or float64; differentiable by the weights.
        """
        return losses_by_kind(self._norms, group_by_kind(self._convs, "SpectralPenalty"))

    def state_dict(self):
        """The vectors of the power iteration, to continue a training with."""
        kinds = group_by_kind(self._convs, "SpectralPenalty")
        return {"vectors": [self._vectors.get(kind) for kind in kinds]}

    def load_state_dict(self, state):
        """Continue from a `state_dict` of the same convolutions; vectors that do not fit start anew."""
        self._vectors |= zip(self._vectors, state["vectors"], strict=False)

    def _norms(self, kind, kernels, grad):
        """The n of L = 1/2 n^2, (B,), of kernels (B * g, M / g, C / g, kh, kw), and the gradient of L."""
        stride, groups, *_ = kind
        batch, outputs, inputs, *size = kernels.shape
        stride = tuple(map(min, stride, size))
        table, root_share = spectral_tables(*size, stride, like=kernels)
        # (B, taps, C, M): the transform is that of the transposed convolution, E = C * sh * sw channels to M
        taps = kernels.flatten(3).permute(0, 3, 2, 1).reshape(batch, math.prod(size), -1)
        matrices = torch.bmm(table.expand(batch, -1, -1), taps)
        matrices = matrices.view(batch * len(root_share), -1, outputs)  # (B * g * F, 2 E, M): A over B
        vectors = self._improved(kind, matrices)
        image = _apply(matrices, vectors)
        largest = torch.linalg.vector_norm(image[:, 0], dim=1)
        excess = (largest.square() - self.bound**2).clamp(min=0).view(batch, -1) * root_share
        if grad is not None:
            # the derivative of sigma_1^2 has rank 2: 2 Re(u v*) in A and 2 Im(u v*) in B
            factor = (excess * (2 * root_share)).view(-1, 1, 1)
            torch.bmm(image.mT, vectors * factor, out=matrices)
            taps = torch.bmm(table.T.expand(batch, -1, -1), matrices.view(batch, len(table), -1))
            grad.flatten(3).permute(0, 3, 2, 1).copy_(taps.view(batch, -1, inputs, outputs))
        return torch.linalg.vector_norm(excess.view(-1, groups * len(root_share)), dim=1)

    def _improved(self, kind, matrices):
        """Vectors v nearer to the singular vectors: (B * g * F, 2, M), real and imaginary part."""
        v, shape, steps = self._vectors.get(kind), (len(matrices), 2, matrices.shape[2]), 1
        if v is None or v.shape != shape:
            generator = torch.Generator().manual_seed(self.seed)
            v, steps = torch.randn(shape, generator=generator), self.FIRST_STEPS
        v = v.to(matrices)
        for _ in range(steps):
            improved = torch.bmm(_apply(matrices, v), matrices)
            norm = torch.linalg.vector_norm(improved, dim=(1, 2), keepdim=True)
            # a kernel of zeros has no direction: keep the vectors until it has one
            v = torch.where(norm > 1e-20, improved / norm, v)
        self._vectors[kind] = v
        return v


def _apply(matrices, vectors):
    """u = (A + i B)(x + i y) as ((Re u, Im u), (Im u, -Re u)).

    The product of these two rows with A over B is (A^T - i B^T) u: real part, imaginary part.

    Args:
        matrices (Tensor): (n, 2 E, M), A over B.
        vectors (Tensor): (n, 2, M), x and y.

    Returns:
        Tensor: (n, 2, 2 E).
    """
    products = torch.bmm(vectors, matrices.mT).view(len(vectors), 4, -1)  # A x, B x, A y, B y
    (table,) = complex_product_table(like=vectors)
    return torch.bmm(table.expand(len(vectors), 4, 4), products).view(len(vectors), 2, -1)
