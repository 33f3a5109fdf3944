"""Convolutions that preserve the inner product up to a constant, or in a learned metric.

Project report, section 7: <A x, A x'> = c <x, x'> with a constant c for each layer, and <A x, A x'> = <x,
x'>_M with a matrix M, here diagonal. NFNet (Brock et al., 2021, https://arxiv.org/abs/2102.06171, section
3) keeps the variance by such constants; Yang, Simon, Bernstein (https://arxiv.org/abs/2310.17813, condition
1) derive sqrt(fan_out / fan_in) for the spectral norm.
"""

import contextlib
import math

import torch
from torch import nn
from torch.nn import functional as F

from ._conv import per_axis


def conv_gain(weight_shape, stride=1, groups=1, transposed=False):
    """The gain with which an isometric convolution keeps the mean square: sqrt(max(1, n_out / n_in)).

    n_in and n_out are the numbers of values read and written for each position of the smaller grid. A
    convolution reads E = C / g * min(kh, sh) * min(kw, sw) values of its own and writes M / g. A transposed
    one reads C_in / g and writes C_out / g * sh * sw, gaps between its taps included. An isometry keeps the
    sum of squares, so with n_out > n_in the mean square falls by n_in / n_out. A layer that narrows is the
    adjoint of an isometry: its rows have norm 1, and its gain is 1. It keeps the mean square on average over
    semi-orthogonal matrices, and exactly for uncorrelated inputs.

    Upsampling by repetition, "nearest", is the isometry that repeats each pixel s * s times at 1 / s of its
    value. Its gain is sqrt(s * s / 1) = s, so values are repeated unchanged.

    Args:
        weight_shape (sequence of int): (M, C / groups, kh, kw), transposed (C_in, C_out / groups, kh, kw).
        stride (int or (int, int)): of the convolution.
        groups (int): of the convolution.
        transposed (bool): whether it is a transposed one.

    Returns:
        float: at least 1.

    Raises:
        ValueError: a shape without two spatial axes, a bad stride, groups that do not divide the first axis.
    """
    if len(weight_shape) != 4:
        raise ValueError(f"conv_gain takes a shape (M, C / groups, kh, kw), got {tuple(weight_shape)}")
    if groups < 1 or weight_shape[0] % groups:
        raise ValueError(
            f"groups must divide the first of the weight's sizes {tuple(weight_shape)}, got {groups}"
        )
    stride = per_axis("stride", stride, 2)
    first, second, *kernel_size = weight_shape
    first //= groups
    if transposed:
        return math.sqrt(max(1.0, second * math.prod(stride) / first))
    read = second * math.prod(min(k, s) for k, s in zip(kernel_size, stride, strict=True))
    return math.sqrt(max(1.0, first / read))


class _Gained:
    """A layer with a constant `gain` times its weight.

    Without the gain the weights compute another function, so the state dict holds both. A gain of 1 is left
    out: layers without gains keep the state dicts that they always had.
    """

    always_saved = False
    centred = False

    def __init__(self, *args, gain=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"{type(self).__name__} gain must be a finite number above 0, got {gain}")
        self.gain = float(gain)

    @torch.no_grad()
    def fold_(self, *scale):
        """Multiply everything that scales `weight` into it for good; `scale` as in ``scaled_weight``."""
        self.weight.copy_(self.scaled_weight(*scale))
        self.gain = 1.0

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.gain != 1 or _Gained.always_saved:
            destination[prefix + "gain"] = torch.tensor(self.gain, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if prefix + "gain" in state_dict:
            self.gain = float(state_dict.pop(prefix + "gain"))
        elif prefix + "weight" in state_dict:
            self.gain = 1.0
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self):
        return super().extra_repr() + (f", gain={self.gain:.4g}" if self.gain != 1 else "")


@contextlib.contextmanager
def gains_in_state_dicts():
    """State dicts made within it hold every gain, even 1: for code that asks what a model can load."""
    _Gained.always_saved = True
    try:
        yield
    finally:
        _Gained.always_saved = False


class ScaledLinear(_Gained, nn.Linear):
    """A linear layer with `gain * weight`: (N, in_features) -> (N, out_features).

    The state dict holds the gain as for :class:`ScaledConv2d`.

    Args:
        args, kwargs: as in ``nn.Linear``. A bias is not scaled.
        gain (float): the constant.

    Attributes:
        centred (bool): as in :class:`ScaledConv2d`.

    Raises:
        ValueError: a gain that is not a finite number above 0.
    """

    def scaled_weight(self):
        """Tensor: what the input is multiplied with, of the shape of `weight`; differentiable."""
        return self.weight if self.gain == 1 else self.gain * self.weight

    def forward(self, x):
        return F.linear(x, self.scaled_weight(), self.bias)


class _ScaledConv(_Gained):
    """What the two convolutions share, see :class:`ScaledConv2d`."""

    def __init__(self, *args, gain=1.0, metric=False, **kwargs):
        super().__init__(*args, gain=gain, **kwargs)
        self.register_parameter("metric", nn.Parameter(torch.ones(self.in_channels)) if metric else None)

    def scaled_weight(self, scale=None):
        """Tensor: what the input is convolved with, of the shape of `weight`; differentiable.

        Args:
            scale (Tensor or None): one more factor, as in :meth:`forward`.
        """
        weight, factors = self.weight, [self.gain] if self.gain != 1 else []
        for tensor in (self.metric, scale):
            if tensor is not None and tensor.dim() > 0:
                weight = self._by_input(tensor, weight)
            elif tensor is not None:
                factors.append(tensor)
        return math.prod(factors[1:], start=factors[0]) * weight if factors else weight

    def _by_input(self, factors, weight):
        """The weight with each input channel's part times its factor, (C_in,)."""
        if len(factors) != self.in_channels:
            raise ValueError(
                f"a scale must have {self.in_channels} values, one an input channel, or none, "
                f"got {len(factors)}"
            )
        if self.transposed:
            return factors.view(-1, 1, 1, 1) * weight
        by_group = weight.unflatten(0, (self.groups, -1))  # (g, M / g, C / g, kh, kw)
        return (factors.view(self.groups, 1, -1, 1, 1) * by_group).flatten(0, 1)

    def fold_(self, *scale):
        super().fold_(*scale)
        self.metric = None

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        found = {name for name in ("weight", "metric") if prefix + name in state_dict}
        if self.metric is None and "metric" in found:
            raise ValueError(
                f"{prefix}metric of the state dict has no place: this model was built without metrics, or "
                "they are folded into its weights. Load the state dict into a new model with metric=True "
                "(METRIC True in the config), and fold that if you like"
            )
        if self.metric is not None and found == {"weight"}:
            nn.init.ones_(self.metric)  # weights of a layer without a metric keep their function
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self):
        return super().extra_repr() + (", metric=True" if self.metric is not None else "")


class ScaledConv2d(_ScaledConv, nn.Conv2d):
    """A convolution with `gain * metric * weight`, of which `weight` is kept near an isometry.

        y = g * sum_c W[:, c] * (m_c x_c),    <A x, A x'> = g^2 <x, x'>_M with M = diag(m)^2

    The second equation holds where W is an isometry. The penalty, the delta and orthogonal initialisations,
    singular values and ``isometry_error`` take `weight`, the layer without its scale. The state dict holds
    the gain as ``gain`` where it is not 1. A state dict with a weight and no gain sets it to 1, so weights
    keep the function that they were trained for.

    The gain is a number of the layer, no parameter or buffer. So ``torch.func.functional_call`` raises a
    TypeError for a state dict with a gain: give it ``dict(model.named_parameters())``. The gains are then
    those of the model.

    Args:
        args, kwargs: as in ``nn.Conv2d``. A bias is not scaled.
        gain (float): the constant g = sqrt(c), usually from :func:`conv_gain`.
        metric (bool): learn a factor m_c for each input channel, 1 at the start.

    Attributes:
        metric (Parameter or None): m, (in_channels,).
        centred (bool): training keeps the means of the kernels, see
            :func:`~iso_d2.engine.build_optimizer`. Not in the state dict.

    Raises:
        ValueError: a gain that is not a finite number above 0; a scale of the wrong length; in
            ``load_state_dict``, a metric for a layer without one.

    Source: report, section 7.
    """

    def forward(self, x, scale=None):
        """(N, C, H, W) -> (N, M, H', W').

        Args:
            x (Tensor): the input.
            scale (Tensor or None): one more factor of the weight, 0-dim or (C,), such as the residual scale
                of a block. conv(x, s W) keeps no output for the gradient of s; s * conv(x, W) would.
        """
        return self._conv_forward(x, self.scaled_weight(scale), self.bias)


class ScaledConvTranspose2d(_ScaledConv, nn.ConvTranspose2d):
    """:class:`ScaledConv2d` for a transposed convolution, (N, C_in, H, W) -> (N, C_out, H', W')."""

    def forward(self, x, scale=None, output_size=None):
        """As in :class:`ScaledConv2d`; `output_size` as in ``nn.ConvTranspose2d``."""
        axes = (self.stride, self.padding, self.kernel_size, 2, self.dilation)
        output_padding = self._output_padding(x, output_size, *axes)
        options = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        return F.conv_transpose2d(x, self.scaled_weight(scale), self.bias, *options)
