"""UNet and ISO-UNet.

Ronneberger, Fischer, Brox: U-Net, MICCAI 2015 (https://arxiv.org/abs/1505.04597); ISO-UNet: report, section
3.2 and Figure 4. What differs from the former: convolutions keep the size (padding 1), so that nothing is cut
off the skip connections. What differs from the latter: the initialisation, see :class:`UNet`.
"""

import math
from collections import OrderedDict
from itertools import accumulate

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import nn

from ..isometry import SReLU, srelu_gain, srelu_mean_square
from .signal import STARTS, Signal


class UNet(nn.Module):
    """UNet, or ISO-UNet if isometric: image -> logits of each pixel.

    `depth` encoder blocks of two 3x3 convolutions, each with its activation, and 2x2 max-pooling between the
    blocks; depth - 1 decoder blocks: a convolution that doubles the size and halves the width, concatenation
    behind the encoder's output of that size, two 3x3 convolutions again; at last a 1x1 convolution. There is
    no activation right after the one that doubles the size.

    ISO-UNet has SReLU, no normalization, and no bias but in the 1x1 convolution. Its start decides what it
    can learn. Plain delta kernels everywhere (``init="delta"``, the report's words) copy the channels of the
    image and leave all others 0; and a channel that is 0, as are the weights that read it, has no gradient
    and stays 0. Only the first `base_channels` of each level can ever wake, through the uppermost one. So
    ``init="orthogonal"`` takes the delta only where the width stays; where it changes, the centre tap is a
    random semi-orthogonal matrix; ``init="random"`` has random isometries over all taps everywhere. The
    transposed convolution spreads each input pixel over one 2x2 block,
    x -> x W with W (C_in, 4 C_out); it keeps the norm of x if the rows of W are orthonormal, which they can
    be as C_in = 2 C_out. Every convolution is then exactly an isometry or, where it narrows, the adjoint of
    one: the orthogonality penalty with ``mode="exact"`` is 0, with either `up_kernel`.

    An isometry from few channels to many makes each value smaller, until none reaches the thresholds b.
    ``signal="scaled"`` gives every convolution the gain that keeps the mean square of its values, and those
    that double the size one more, by which the upward path is concatenated at the mean square that the skip
    connection has, as in EDM2 (Karras et al., 2023, https://arxiv.org/abs/2312.02696, section 2.4).

    UNet has ReLU and a normalization between convolution and activation. Where there is none the convolutions
    have biases; so does, in either case, the convolution that doubles the size. Weights are drawn from a
    normal distribution with variance 2 / (inputs that one output sees).

    Args:
        in_channels (int): channels of the image.
        num_classes (int): channels of the logits.
        base_channels (int): width of the first level; each further level is twice as wide.
        depth (int): how many levels (resolutions).
        isometric (bool): ISO-UNet or UNet.
        norm (str or callable): normalization of UNet as in Detectron2's ``get_norm``; "": none.
        init (str or None): of ISO-UNet, "delta", "orthogonal" or "random"; None: "orthogonal" with the
            paper's signal, "random" with "scaled".
        up (str): "transposed", a transposed convolution of stride 2, or "nearest", each pixel repeated 2x2
            (in ISO-UNet with the paper's signal at half its value, which keeps the norm) and a 3x3
            convolution.
        up_kernel (int): of the transposed convolution. 2, UNet's own: each output pixel sees one input pixel.
            6: the report's "padding 2, stride 2" doubles the size with no other even kernel; an output pixel
            sees 3x3 input pixels, at nine times the cost. The report does not name its kernel nor a reason
            for a larger one, so 2 is the default. With ``init="orthogonal"`` the outer taps start as 0.
        srelu_init (float): b in ISO-UNet's max(x, b).
        srelu_learnable (bool): whether the thresholds b are learned.
        signal (str): of ISO-UNet, "paper" or "scaled".
        metric (bool): every convolution of an ISO-UNet but the 1x1 learns a factor for each input channel.
        srelu_gain (bool): with "scaled", gains make good what an SReLU takes from a standard normal input.

    Raises:
        ValueError: an option that does not exist, or a normalization in ISO-UNet.

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
        signal = Signal(signal, init, metric, srelu_init if srelu_gain else None)
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
                layers[f"act{i}"] = (
                    SReLU(outputs, init=srelu_init, learnable=srelu_learnable, inplace=True)
                    if isometric
                    else nn.ReLU(inplace=True)
                )
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
            self._balance(signal, srelu_init)
        for module in [] if isometric else self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                _kaiming_init_(module)
        # with PyTorch's initialisation: as a delta the logits would be an input channel
        self.output = nn.Conv2d(base_channels, num_classes, 1)

    def _balance(self, signal, threshold):
        """Give each upward path the mean square of the skip connection that it is concatenated with.

        Of signals that are normal with mean square 1 in the image: every convolution keeps that, every SReLU
        takes some, so that the longer path has less.
        """
        restored = 1.0 if signal.threshold is None else srelu_gain(threshold) ** 2

        def after_block(mean_square):
            for _ in range(2):
                mean_square = restored * srelu_mean_square(threshold, mean_square)
            return mean_square

        levels = list(accumulate(self.encoder, lambda q, _: after_block(q), initial=1.0))[1:]
        below = levels.pop()
        for up in self.ups:
            skip = levels.pop()
            conv = up if isinstance(up, nn.ConvTranspose2d) else up.conv
            # what reads the skip connection restores it; the gain of this convolution has done so already
            conv.gain *= math.sqrt(skip / restored / below)
            below = after_block(skip)

    def forward(self, images):
        """(N, in_channels, H, W), of any size -> (N, num_classes, H, W), logits.

        At the right and the bottom the image is continued by zeros, up to multiples of 2^(depth - 1).
        """
        height, width = images.shape[-2:]
        multiple = 2 ** len(self.ups)
        below, right = -height % multiple, -width % multiple
        x = F.pad(images, (0, right, 0, below)) if below or right else images
        skips = []
        for block in self.encoder:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.ups, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return self.output(x)[..., :height, :width]


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
