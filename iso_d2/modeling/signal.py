"""How an isometric network carries its signal: as in the paper, or with its mean square kept.

What the log prints of it is in iso_d2/analysis/measured_signal.py.
"""

import math
from dataclasses import dataclass

from ..isometry import (
    ScaledConv2d,
    ScaledConvTranspose2d,
    SReLU,
    centre_,
    conv_gain,
    delta_init_,
    orthogonal_init_,
    srelu_gain,
)

SIGNALS = ("paper", "scaled")
STARTS = ("delta", "orthogonal", "random")


@dataclass(frozen=True)
class Signal:
    """The convolutions and activations of a network: their start, gain, metric and thresholds.

    Args:
        kind (str): "paper": no gains. "scaled": every convolution has the gain that keeps the mean square of
            uncorrelated values, :func:`~iso_d2.isometry.conv_gain`.
        start (str or None): "delta": delta kernels. "orthogonal": delta kernels where width and size stay,
            else a random semi-orthogonal matrix on as many taps as the stride has pixels. "random": random
            isometries over all taps, see :func:`~iso_d2.isometry.orthogonal_init_`. None: "delta" with
            "paper", "random" with "scaled".
        metric (bool): every convolution learns a factor for each of its input channels.
        srelu_gain (bool): convolutions that read an SReLU also restore what it takes from a standard normal
            input, by :func:`~iso_d2.isometry.srelu_gain`.
        centred (bool or None): kernels of more than one tap that read an SReLU start without their mean, and
            an optimizer of :func:`~iso_d2.engine.build_optimizer` keeps it at 0. An SReLU's output has a mean
            above 0, which each further layer would pass on and add to. None: with "scaled".
        srelu_init (float): start of the SReLU thresholds b.
        srelu_learnable (bool): whether the thresholds are learned.

    Raises:
        ValueError: unknown kind or start; `srelu_gain` with "paper"; `centred` is neither None nor a bool.

    Source: report, section 7; see docs/signal.md.
    """

    kind: str = "paper"
    start: str | None = None
    metric: bool = False
    srelu_gain: bool = False
    centred: bool | None = None
    srelu_init: float = -1.0
    srelu_learnable: bool = True

    def __post_init__(self):
        if self.kind not in SIGNALS:
            raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {self.kind!r}")
        if self.start not in (None, *STARTS):
            raise ValueError(f"init must be one of {', '.join(STARTS)} or None, got {self.start!r}")
        if self.srelu_gain and not self.scaled:
            raise ValueError("the gain of SReLU (srelu_gain) needs signal 'scaled', got 'paper'")
        object.__setattr__(self, "start", self.start or ("random" if self.scaled else "delta"))
        object.__setattr__(self, "centred", self.unless_given("centred", self.centred))

    @property
    def scaled(self):
        return self.kind == "scaled"

    def unless_given(self, name, value):
        """A switch that is on with "scaled" and off with "paper" where it is None, else as given."""
        if value is not None and not isinstance(value, bool):
            raise ValueError(
                f"{name} (MODEL.ISONET.{name.upper()}) must be True, False or None, got {value!r}"
            )
        return self.scaled if value is None else value

    def residual_scale(self, blocks):
        """float: start of the residual scales of a net with this many blocks.

        0 with "paper". With "scaled" 1 / sqrt(blocks): independent branches then add up to the size of the
        signal that enters the first block.

        Source: ReZero (Bachlechner et al., 2020, https://arxiv.org/abs/2003.04887, eq. (4)) and the paper for
        0; SkipInit (De, Smith, 2020, https://arxiv.org/abs/2002.10444, section 4) for 1 / sqrt(blocks).
        """
        return 1 / math.sqrt(blocks) if self.scaled else 0.0

    def srelu(self, channels):
        """SReLU: in place, since it follows a convolution."""
        return SReLU(channels, self.srelu_init, self.srelu_learnable, inplace=True)

    def conv(self, in_channels, out_channels, kernel_size, stride=1, dilation=1, reads_srelu=True):
        """A convolution without bias that keeps the size at stride 1.

        Args:
            in_channels, out_channels, kernel_size, stride, dilation (int): of the convolution.
            reads_srelu (bool): whether its input is the output of an SReLU.

        Returns:
            ScaledConv2d
        """
        geometry = kernel_size, stride, dilation * (kernel_size - 1) // 2, dilation
        conv = ScaledConv2d(in_channels, out_channels, *geometry, bias=False, metric=self.metric)
        self._set_up(conv, reads_srelu)
        if self.centred and reads_srelu and kernel_size > 1:
            centre_(conv.weight)
            conv.centred = True
        return conv

    def doubling(self, in_channels, out_channels, kernel_size):
        """A transposed convolution of stride 2 without bias that doubles the size and reads an SReLU.

        A start other than "delta" is a semi-orthogonal matrix on the taps of one 2x2 block.

        Returns:
            ScaledConvTranspose2d
        """
        padding = (kernel_size - 2) // 2
        conv = ScaledConvTranspose2d(
            in_channels, out_channels, kernel_size, 2, padding, bias=False, metric=self.metric
        )
        self._set_up(conv, reads_srelu=True)
        return conv

    def _set_up(self, conv, reads_srelu):
        weight, transposed = conv.weight, conv.transposed
        if self.scaled:
            conv.gain = conv_gain(weight.shape, conv.stride, transposed=transposed)
            if reads_srelu and self.srelu_gain:
                conv.gain *= srelu_gain(self.srelu_init)
        keeps_shape = conv.in_channels == conv.out_channels and conv.stride == (1, 1)
        if self.start == "delta" or (self.start == "orthogonal" and keeps_shape):
            delta_init_(weight, transposed=transposed)
        else:
            orthogonal_init_(weight, conv.stride, transposed=transposed, all_taps=self.start == "random")


PAPER = Signal()
