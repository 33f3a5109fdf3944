"""A penalty on the largest singular values of convolutions, which leaves all others free.

After spectral norm regularisation (Yoshida, Miyato, 2017, https://arxiv.org/abs/1705.10941), whose power
iteration takes the flattened kernel. What differs: it runs at every frequency of the convolution itself, and
only what is above a bound counts.
"""

import math
from collections import defaultdict

import torch
from torch import nn

from ._conv import check_weight, per_axis, polyphase, split_groups
from ._penalty import frequency_tables


class SpectralPenalty:
    """How far the largest singular values of convolutions are above a bound.

        L = 1 / (2 N) sum over the N frequencies f of max(0, sigma_1(f)^2 - tau^2)^2

    sigma_1(f) is the largest singular value at frequency f, on the grid of the penalty with
    ``mode="exact"``, (2k - 1) x (2k - 1); a strided convolution is taken by its polyphase components. At a
    singular value above tau (dilation that is coprime to the stride changes nothing) its gradient is that
    of `orthogonality_loss`; of those below there is none.

    The singular vectors come from power iteration, one step at each call, which goes on from the one before
    as the weights change slowly; the first call makes 20. sigma_1 is thus estimated from below.

    Args:
        convs (iterable[nn.Conv2d | nn.ConvTranspose2d]): their weights are taken without gains.
        bound (float): tau.
        seed (int): of the vectors that the iteration starts from.

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
        alike = defaultdict(list)
        for position, conv in enumerate(convs):
            if not isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
                raise TypeError(
                    f"SpectralPenalty takes nn.Conv2d and nn.ConvTranspose2d, got {type(conv).__name__}"
                )
            check_weight(conv.weight)
            transposed = isinstance(conv, nn.ConvTranspose2d)
            alike[conv.weight.shape, conv.stride, conv.groups, transposed].append((position, conv))
        self._alike = dict(alike)
        self._vectors = {}

    def __call__(self):
        """The penalty of each convolution, without a coefficient.

        Returns:
            Tensor: (len(convs),), float32 or float64; differentiable by the weights.
        """
        values = {}
        for kind, members in self._alike.items():
            positions, convs = zip(*members, strict=True)
            with torch.autocast(convs[0].weight.device.type, enabled=False):
                squares, share = self._largest_squares(kind, [conv.weight for conv in convs])
                above = (squares - self.bound**2).clamp(min=0).square()  # (F, B * g)
                losses = 0.5 * (share[:, None] * above).sum(0).view(len(convs), -1).sum(1)
            values.update(zip(positions, losses, strict=True))
        return torch.stack([values[i] for i in range(len(values))]) if values else torch.zeros(0)

    def state_dict(self):
        """The vectors of the power iteration, for a training that goes on."""
        return {"vectors": list(self._vectors.values())}

    def load_state_dict(self, state):
        """Go on from `state_dict` of a penalty of the same convolutions; what does not fit starts anew."""
        self._vectors = dict(zip(self._alike, state["vectors"], strict=False))

    def _largest_squares(self, kind, weights):
        """sigma_1^2 at each frequency, (F, B * g), and each frequency's share, (F,)."""
        _, stride, groups, transposed = kind
        kernels = split_groups(torch.stack(weights), groups, transposed)
        kernels = kernels.to(torch.promote_types(kernels.dtype, torch.float32))
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
        """Vectors v nearer to the right singular ones: (F * B * g, E, 1) real and imaginary part."""
        v, shape, steps = self._vectors.get(kind), (2, len(real), real.shape[2], 1), 1
        if v is None or v.shape != shape:
            generator = torch.Generator().manual_seed(self.seed)
            v, steps = torch.randn(shape, generator=generator), self.FIRST_STEPS
        v = v.to(real)
        for _ in range(steps):
            u = _apply(real, imaginary, v)
            improved = torch.stack(_apply(real.mT, -imaginary.mT, u))
            norm = improved.square().sum((0, 2, 3)).sqrt().view(-1, 1, 1)
            # a kernel of zeros has no direction: the vectors wait until it has one
            v = torch.where(norm > 1e-20, improved / norm, v)
        self._vectors[kind] = v
        return v


def _apply(real, imaginary, vectors):
    """(A + i B)(x + i y): real and imaginary part."""
    x, y = vectors
    return real @ x - imaginary @ y, real @ y + imaginary @ x
