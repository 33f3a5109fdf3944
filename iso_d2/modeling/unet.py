"""UNet and ISO-UNet.

UNet: Ronneberger, Fischer, Brox, MICCAI 2015 (https://arxiv.org/abs/1505.04597). What differs: convolutions
keep the size (padding 1), so the skip connections are not cropped. ISO-UNet: report, section 3.2 and Figure
4. What differs: the initialisation, see :class:`UNet`.
"""

import math
from collections import OrderedDict
from itertools import accumulate

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import nn

from ..isometry import srelu_gain, srelu_mean_square
from .signal import STARTS, Signal


class UNet(nn.Module):
    """UNet, or ISO-UNet if isometric: image -> logits of each pixel.

    The encoder has `depth` blocks of two 3x3 convolutions, each with its activation, with 2x2 max-pooling
    between them. The decoder has depth - 1 blocks: a convolution that doubles the size and halves the width,
    concatenation behind the encoder's output of that size, and two 3x3 convolutions again. A 1x1 convolution
    comes last. No activation follows the convolution that doubles the size.

    ISO-UNet has SReLU, no normalization, and a bias only in the 1x1 convolution. Its start decides what it
    can learn. Plain delta kernels everywhere (``init="delta"``, the report's words) copy the channels of the
    image and leave all others 0. A channel that is 0 gets no gradient if the weights that read it are 0, too,
    and stays 0. Only the first `base_channels` of each level can ever wake, through the uppermost level. So
    ``init="orthogonal"`` uses the delta only where the width stays; where it changes, the centre tap is a
    random semi-orthogonal matrix. ``init="random"`` has random isometries over all taps everywhere. The
    transposed convolution spreads each input pixel over one 2x2 block, x -> x W with W (C_in, 4 C_out). It
    keeps the norm of x since the rows of W are orthonormal, which is possible as C_in = 2 C_out. Every
    convolution is then an isometry or, where it narrows, the adjoint of one: the orthogonality penalty with
    ``mode="exact"`` is 0 with either `up_kernel`.

    An isometry from few channels to many makes each value smaller, until none reaches the thresholds b.
    ``signal="scaled"`` gives every convolution the gain that keeps the mean square of its values. Those that
    double the size get one more gain, which gives the upward path the mean square of the skip connection that
    it is concatenated with, as in EDM2 (Karras et al., 2023, https://arxiv.org/abs/2312.02696, section 2.4).

    UNet has ReLU, with a normalization before it. Without a normalization the convolutions have biases; the
    convolution that doubles the size always has. Weights are drawn from a normal distribution with variance
    2 / (inputs that one output sees).

    Args:
        in_channels (int): channels of the image.
        num_classes (int): channels of the logits.
        base_channels (int): width of the first level; each further level is twice as wide.
        depth (int): how many levels (resolutions).
        isometric (bool): ISO-UNet or UNet.
        norm (str or callable): normalization of UNet as in Detectron2's ``get_norm``; "": none.
        init (str or None): start of ISO-UNet's signal; None: "orthogonal" with "paper", "random" with
        "scaled".
        up (str): "transposed": a transposed convolution of stride 2. "nearest": each pixel is repeated 2x2
            (in ISO-UNet with the paper's signal at half its value, which keeps the norm), then a 3x3
            convolution.
        up_kernel (int): of the transposed convolution. 2, as in UNet: each output pixel sees one input pixel.
            6: the only even kernel with which the report's "padding 2, stride 2" doubles the size. An output
            pixel then sees 3x3 input pixels, at nine times the cost. The report names neither its kernel nor
            a reason for a larger one, so 2 is the default. With ``init="orthogonal"`` the outer taps start at
            0.
        deep_supervision (bool): in training a 1x1 convolution gives logits of each coarser level of the
            decoder, too.
        signal, srelu_init, srelu_learnable, metric, srelu_gain: of ISO-UNet's
            :class:`~iso_d2.modeling.signal.Signal`. The 1x1 convolution has no metric.

    Raises:
        ValueError: an option that does not exist, a normalization in ISO-UNet, or deep supervision with fewer
            than two levels in the decoder.

    Source: report, section 3.2; variance of UNet's weights: Ronneberger et al., section 3.
    """

    def __init__(
        self,
        in_channels=3,
        num_classes=1,
        base_channels=64,
        depth=5,
        isometric=True,
        norm="",
        init=None,
        up="transposed",
        up_kernel=2,
        srelu_init=-1.0,
        srelu_learnable=False,
        signal="paper",
        metric=False,
        srelu_gain=False,
        deep_supervision=False,
    ):
        super().__init__()
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "base_channels": base_channels}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"UNet {name} must be at least 1, got {size}")
        _check_choice("depth", depth, range(1, 11))
        _check_choice("init", init, (*STARTS, None))
        _check_choice("up", up, ("transposed", "nearest"))
        _check_choice("up_kernel", up_kernel, (2, 6))
        if isometric and norm:
            raise ValueError(
                f"an isometric UNet has no normalization, got norm={norm!r}: "
                "set MODEL.UNET.NORM '' or MODEL.UNET.ISOMETRIC False"
            )
        if not isometric and (signal != "paper" or metric):
            raise ValueError(
                "UNet's signal and metric are those of ISO-UNet: set MODEL.UNET.ISOMETRIC True, or "
                "MODEL.UNET.SIGNAL paper and MODEL.UNET.METRIC False"
            )
        init = init or ("orthogonal" if signal == "paper" else None)
        signal = Signal(signal, init, metric, srelu_gain, False, srelu_init, srelu_learnable)
        self.in_channels = in_channels
        self.num_classes = num_classes

        def conv3x3(inputs, outputs, reads_srelu=True):
            if isometric:
                return signal.conv(inputs, outputs, 3, reads_srelu=reads_srelu)
            return nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)

        def block(inputs, outputs, first=False):
            layers = OrderedDict()
            for i, channels in enumerate((inputs, outputs), start=1):
                layers[f"conv{i}"] = conv3x3(channels, outputs, reads_srelu=not first or i > 1)
                if norm:
                    layers[f"norm{i}"] = get_norm(norm, outputs)
                layers[f"act{i}"] = signal.srelu(outputs) if isometric else nn.ReLU(inplace=True)
            return nn.Sequential(layers)

        def doubling(inputs, outputs):
            if up == "transposed":
                if isometric:
                    return signal.doubling(inputs, outputs, up_kernel)
                padding = (up_kernel - 2) // 2
                return nn.ConvTranspose2d(inputs, outputs, up_kernel, stride=2, padding=padding)
            conv = signal.conv(inputs, outputs, 3) if isometric else nn.Conv2d(inputs, outputs, 3, padding=1)
            keeps_norm = isometric and not signal.scaled
            return nn.Sequential(OrderedDict(repeat=_Repeat(0.5 if keeps_norm else 1.0), conv=conv))

        widths = [base_channels * 2**level for level in range(depth)]
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.encoder = nn.ModuleList(
            block(above, here, first=i == 0)
            for i, (above, here) in enumerate(zip([in_channels, *widths], widths, strict=False))
        )
        self.ups = nn.ModuleList(doubling(below, here) for below, here in upwards)
        self.decoder = nn.ModuleList(block(2 * here, here) for _, here in upwards)
        if signal.scaled:
            self._balance(signal)
        for module in [] if isometric else self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                _kaiming_init_(module)
        # PyTorch's initialisation, since with a delta the logits would be a copy of an input channel
        self.output = nn.Conv2d(base_channels, num_classes, 1)
        if deep_supervision and depth < 3:
            raise ValueError(
                f"UNet deep_supervision (MODEL.UNET.DEEP_SUPERVISION) needs depth 3 or more, got {depth}"
            )
        # of the decoder's blocks but the last, which has `output`; a dictionary, since they are no blocks
        self.coarse_outputs = nn.ModuleDict(
            {str(i): nn.Conv2d(here, num_classes, 1) for i, (_, here) in enumerate(upwards[:-1])}
            if deep_supervision
            else {}
        )

    def _balance(self, signal):
        """Give each upward path the mean square of the skip connection that it is concatenated with.

        The image is taken as normal with mean square 1. Every convolution keeps the mean square and every
        SReLU takes some of it, so the longer path would have less.
        """
        threshold = signal.srelu_init
        restored = srelu_gain(threshold) ** 2 if signal.srelu_gain else 1.0

        def after_block(mean_square):
            for _ in range(2):
                mean_square = restored * srelu_mean_square(threshold, mean_square)
            return mean_square

        levels = list(accumulate(self.encoder, lambda q, _: after_block(q), initial=1.0))[1:]
        below = levels.pop()
        for up in self.ups:
            skip = levels.pop()
            conv = up if isinstance(up, nn.ConvTranspose2d) else up.conv
            # the convolution that reads both paths restores what an SReLU took; here this one did so before
            conv.gain *= math.sqrt(skip / restored / below)
            below = after_block(skip)

    def forward(self, images):
        """(N, in_channels, H, W), of any size -> (N, num_classes, H, W), logits.

        Zeros at the right and the bottom extend the image to multiples of 2^(depth - 1). With deep
        supervision it is a list in training, the finest level first; the others are resized bilinearly.
        """
        height, width = images.shape[-2:]
        multiple = 2 ** len(self.ups)
        below, right = -height % multiple, -width % multiple
        # a trace pads always, since the condition would become a constant
        padded = below or right or torch.jit.is_tracing()
        x = F.pad(images, (0, right, 0, below)) if padded else images
        padded_size = x.shape[-2:]
        skips = []
        for block in self.encoder:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        coarse = []
        for i, (up, block) in enumerate(zip(self.ups, self.decoder, strict=True)):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
            if self.training and str(i) in self.coarse_outputs:
                logits = self.coarse_outputs[str(i)](x)
                resized = F.interpolate(logits, padded_size, mode="bilinear", align_corners=False)
                coarse.append(resized[..., :height, :width])
        logits = self.output(x)[..., :height, :width]
        return [logits, *coarse[::-1]] if coarse else logits


class _Repeat(nn.Module):
    """(N, C, H, W) -> (N, C, 2H, 2W): each pixel four times, multiplied by a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return F.interpolate(self.factor * x, scale_factor=2, mode="nearest")


def _check_choice(name, value, accepted):
    if value not in accepted:
        raise ValueError(f"UNet {name} must be one of {', '.join(map(str, accepted))}, got {value!r}")


def _kaiming_init_(conv):
    inputs_seen = conv.in_channels * math.prod(conv.kernel_size)
    if isinstance(conv, nn.ConvTranspose2d):
        inputs_seen //= math.prod(conv.stride)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / inputs_seen))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
