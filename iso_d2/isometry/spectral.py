"""A penalty on the largest singular values of convolutions that leaves all others free.

After spectral norm regularisation (Yoshida, Miyato, 2017, https://arxiv.org/abs/1705.10941). What differs:
the power iteration runs at every frequency of the convolution itself, not on the flattened kernel, and only
what exceeds a bound counts.
"""

import math

import torch

from ._conv import group_by_kind, map_by_kind, per_axis, polyphase, stack_kernels
from ._orthogonality import frequency_tables


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
        return map_by_kind(self._losses, self._convs, "SpectralPenalty")

    def state_dict(self):
        """The vectors of the power iteration, to continue a training with."""
        return {"vectors": list(self._vectors.values())}

    def load_state_dict(self, state):
        """Continue from a `state_dict` of the same convolutions; vectors that do not fit start anew."""
        self._vectors |= zip(self._vectors, state["vectors"], strict=False)

    def _losses(self, kind, weights):
        """Weights of one kind -> (len(weights),)."""
        with torch.autocast(weights[0].device.type, enabled=False):
            squares, share = self._largest_squares(kind, weights)
            above = (squares - self.bound**2).clamp(min=0).square()  # (F, B * g)
            return 0.5 * (share[:, None] * above).sum(0).view(len(weights), -1).sum(1)

    def _largest_squares(self, kind, weights):
        """sigma_1^2 at each frequency, (F, B * g), and each frequency's share, (F,)."""
        stride, groups, transposed, *_ = kind
        kernels = stack_kernels(weights, groups, transposed)
        size = kernels.shape[-2:]
        stride = tuple(map(min, per_axis("stride", stride, 2), size))
        kernels = polyphase(kernels, stride)  # (B * g, M, E, kh, kw)
        cos, sin, share = frequency_tables(*kernels.shape[-2:], kernels.dtype, kernels.device)
        taps = kernels.flatten(3).movedim(3, 0).flatten(1)  # (kh * kw, B * g * M * E)
        shape = len(share) * kernels.shape[0], *kernels.shape[1:3]
        real, imaginary = (cos @ taps).view(shape), (sin @ taps).view(shape)
        vectors = self._improved(kind, real.detach(), imaginary.detach())
        left, right = _apply(real, imaginary, vectors)
        return (left.square() + right.square()).sum((1, 2)).view(len(share), -1), share

    @torch.no_grad()
    def _improved(self, kind, real, imaginary):
        """Vectors v nearer to the right singular vectors: (F * B * g, E, 1), real and imaginary part."""
        v, shape, steps = self._vectors.get(kind), (2, len(real), real.shape[2], 1), 1
        if v is None or v.shape != shape:
            generator = torch.Generator().manual_seed(self.seed)
            v, steps = torch.randn(shape, generator=generator), self.FIRST_STEPS
        v = v.to(real)
        for _ in range(steps):
            u = _apply(real, imaginary, v)
            improved = torch.stack(_apply(real.mT, -imaginary.mT, u))
            norm = improved.square().sum((0, 2, 3)).sqrt().view(-1, 1, 1)
            # a kernel of zeros has no direction: keep the vectors until it has one
            v = torch.where(norm > 1e-20, improved / norm, v)
        self._vectors[kind] = v
        return v


def _apply(real, imaginary, vectors):
    """(A + i B)(x + i y): real and imaginary part."""
    x, y = vectors
    return real @ x - imaginary @ y, real @ y + imaginary @ x
