"""How an isometric network carries its signal: the paper's way, or with the mean square kept at every width."""

from dataclasses import dataclass

from ..isometry import (
    ScaledConv2d,
    ScaledConvTranspose2d,
    conv_gain,
    delta_init_,
    orthogonal_init_,
    srelu_gain,
)

SIGNALS = ("paper", "scaled")


@dataclass(frozen=True)
class Signal:
    """The convolutions of a network: their start, their gain, their metric.

    Args:
        kind (str): "paper": delta kernels and no gain. "scaled": where the width or the size changes, random
            semi-orthogonal kernels, :func:`~iso_d2.isometry.orthogonal_init_`, and everywhere the gain that keeps
            the mean square of the values, :func:`~iso_d2.isometry.conv_gain`.
        start (str or None): "orthogonal" or "delta" kernels where width or size changes; None: as `kind` says.
        metric (bool): every convolution learns a factor for each of its input channels.
        threshold (float or None): b of the SReLUs, whose own loss the gain of the convolutions that read one
            makes good, by :func:`~iso_d2.isometry.srelu_gain`; None: it does not.

    Raises:
        ValueError: another kind or start; a threshold with "paper".

    Source: report, section 7; see docs/signal.md.
    """

    kind: str = "paper"
    start: str | None = None
    metric: bool = False
    threshold: float | None = None

    def __post_init__(self):
        if self.kind not in SIGNALS:
            raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {self.kind!r}")
        if self.start not in (None, "orthogonal", "delta"):
            raise ValueError(
                f"the start of an isometric network must be orthogonal or delta, got {self.start!r}"
            )
        if self.threshold is not None and not self.scaled:
            raise ValueError("the gain of SReLU (srelu_gain) needs signal 'scaled', got 'paper'")

    @property
    def scaled(self):
        return self.kind == "scaled"

    @property
    def orthogonal(self):
        return self.start == "orthogonal" if self.start else self.scaled

    def conv(self, in_channels, out_channels, kernel_size, stride=1, dilation=1, reads_srelu=True):
        """A convolution without bias that keeps the size at stride 1.

        Args:
            in_channels, out_channels, kernel_size, stride, dilation (int): of the convolution.
            reads_srelu (bool): whether its input is the output of an SReLU.

        Returns:
            ScaledConv2d
        """
        conv = ScaledConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size - 1) // 2,
            dilation=dilation,
            bias=False,
            gain=self._gain(
                (out_channels, in_channels, kernel_size, kernel_size), stride, False, reads_srelu
            ),
            metric=self.metric,
        )
        if self.orthogonal and (in_channels != out_channels or stride != 1):
            orthogonal_init_(conv.weight, stride)
        else:
            delta_init_(conv.weight)
        return conv

    def doubling(self, in_channels, out_channels, kernel_size):
        """A transposed convolution of stride 2 without bias that doubles the size.

        It reads an SReLU. A random start is a semi-orthogonal matrix on the taps of one 2x2 block.

        Returns:
            ScaledConvTranspose2d
        """
        conv = ScaledConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=2,
            padding=(kernel_size - 2) // 2,
            bias=False,
            gain=self._gain((in_channels, out_channels, kernel_size, kernel_size), 2, True, True),
            metric=self.metric,
        )
        if self.orthogonal:
            orthogonal_init_(conv.weight, 2, transposed=True)
        else:
            delta_init_(conv.weight, transposed=True)
        return conv

    def _gain(self, weight_shape, stride, transposed, reads_srelu):
        if not self.scaled:
            return 1.0
        gain = conv_gain(weight_shape, stride, transposed=transposed)
        return gain * srelu_gain(self.threshold) if reads_srelu and self.threshold is not None else gain
