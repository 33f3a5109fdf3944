"""How an isometric network carries its signal: as in the paper, or with its mean square kept."""

from dataclasses import dataclass

from ..isometry import (
    ScaledConv2d,
    ScaledConvTranspose2d,
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
    """The convolutions of a network: their start, their gain, their metric.

    Args:
        kind (str): "paper" has no gains. "scaled" has everywhere the gain that keeps the mean square of
            uncorrelated values, :func:`~iso_d2.isometry.conv_gain`.
        start (str or None): "delta": delta kernels. "orthogonal": delta kernels where the width and the size
            stay, else a random semi-orthogonal matrix on as many taps as the stride has pixels. "random":
            over all taps, see :func:`~iso_d2.isometry.orthogonal_init_`. None: "delta" with "paper",
            "random" with "scaled".
        metric (bool): every convolution learns a factor for each of its input channels.
        threshold (float or None): b of the SReLUs, whose own loss the gain of the convolutions that read one
            makes good, by :func:`~iso_d2.isometry.srelu_gain`; None: it does not.
        centred (bool): kernels of more than one tap that read an SReLU start without their mean, and keep it
            with an optimizer of :func:`~iso_d2.engine.build_optimizer`: an SReLU gives a mean above 0, which
            each further layer would carry on and add to.

    Raises:
        ValueError: another kind or start; a threshold with "paper".

    Source: report, section 7; see docs/signal.md.
    """

    kind: str = "paper"
    start: str | None = None
    metric: bool = False
    threshold: float | None = None
    centred: bool = False

    def __post_init__(self):
        if self.kind not in SIGNALS:
            raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {self.kind!r}")
        if self.start not in (None, *STARTS):
            raise ValueError(f"init must be one of {', '.join(STARTS)} or None, got {self.start!r}")
        if self.threshold is not None and not self.scaled:
            raise ValueError("the gain of SReLU (srelu_gain) needs signal 'scaled', got 'paper'")

    @property
    def scaled(self):
        return self.kind == "scaled"

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
        self._start(conv, in_channels == out_channels and stride == 1)
        if self.centred and reads_srelu and kernel_size > 1:
            centre_(conv.weight)
            conv.centred = True
        return conv

    def doubling(self, in_channels, out_channels, kernel_size):
        """A transposed convolution of stride 2 without bias that doubles the size.

        It reads an SReLU. A start that is not "delta" is a semi-orthogonal matrix on the taps of one 2x2
        block.

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
        return self._start(conv, False)

    def _start(self, conv, keeps_shape):
        start = self.start or ("random" if self.scaled else "delta")
        if start == "delta" or (start == "orthogonal" and keeps_shape):
            delta_init_(conv.weight, transposed=conv.transposed)
        else:
            all_taps = start == "random"
            orthogonal_init_(conv.weight, conv.stride, transposed=conv.transposed, all_taps=all_taps)
        return conv

    def _gain(self, weight_shape, stride, transposed, reads_srelu):
        if not self.scaled:
            return 1.0
        gain = conv_gain(weight_shape, stride, transposed=transposed)
        return gain * srelu_gain(self.threshold) if reads_srelu and self.threshold is not None else gain


PAPER = Signal()
