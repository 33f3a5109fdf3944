"""The stem and the blocks of ISONet and R-ISONet, as in the code of the paper's authors.

Qi, You, Wang, Ma, Malik: Deep Isometric Learning for Visual Recognition, ICML 2020
(https://arxiv.org/abs/2006.16992).
"""

import logging
from collections import OrderedDict

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..isometry import ScaledConv2d, SharedScale, SReLU
from .signal import PAPER

logger = logging.getLogger(__name__)


class Stem(CNNBlockBase):
    """The first convolution with its SReLU; the "imagenet" kind adds max-pooling.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)

    Args:
        in_channels (int): channels of the image.
        out_channels (int): width.
        kind (str): "imagenet", a 7x7 convolution of stride 2 and 3x3 max-pooling of stride 2 (stride 4 in
            all), or "cifar", a 3x3 convolution of stride 1. With the paper's signal the former has PyTorch's
            default initialisation.
        srelu_init (float): start of the SReLU thresholds.
        srelu_learnable (bool): whether the thresholds are learned.
        signal (Signal): how the convolution starts.
        whiten (bool): the convolution is not trained; :class:`~iso_d2.engine.WhiteningHook` makes it whiten
            the images before the first step. A warning comes at a first step without it.
    """

    # Whether the convolution has its weight from WhiteningHook or a state dict; a warning has said that not
    is_set = warned = False

    def __init__(
        self,
        in_channels,
        out_channels,
        kind,
        srelu_init=-1.0,
        srelu_learnable=True,
        signal=PAPER,
        whiten=False,
    ):
        imagenet = kind == "imagenet"
        super().__init__(in_channels, out_channels, 4 if imagenet else 1)
        if imagenet:
            self.conv = signal.conv(in_channels, out_channels, 7, 2, reads_srelu=False)
            if not signal.scaled:
                self.conv.reset_parameters()
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv = signal.conv(in_channels, out_channels, 3, reads_srelu=False)
            self.pool = nn.Identity()
        self.whiten = whiten
        for parameter in self.conv.parameters():
            parameter.requires_grad_(not whiten)
        self.srelu = SReLU(out_channels, init=srelu_init, learnable=srelu_learnable, inplace=True)

    def forward(self, x):
        if (
            self.whiten
            and self.training
            and not (self.is_set or self.warned or torch.compiler.is_compiling())
        ):
            self.warned = True
            logger.warning(
                "The stem is to whiten the images and is not trained, but it is as it was drawn at random: "
                "register iso_d2.engine.WhiteningHook, load weights, or set MODEL.ISONET.WHITEN False"
            )
        return self.pool(self.srelu(self.conv(x)))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_set |= prefix + "conv.weight" in state_dict


class IsoBlock(CNNBlockBase):
    """A block of (R-)ISONet: ``srelu(f(x))``, or ``srelu(x + s * f(x))`` when residual.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)

    The branch f is 3x3, SReLU, 3x3, or with a bottleneck 1x1, SReLU, 3x3, SReLU, 1x1; the stride
    sits on the first 3x3. Where the shape changes, a 1x1 convolution projects x in the residual
    form. At the start a residual block without projection is exactly ``max(x, b)``.

    Args:
        in_channels (int): width of the input.
        out_channels (int): width of the output.
        stride (int): stride of the block.
        residual (bool): R-ISONet's form with a skip connection and one learnable scale s.
        bottleneck_channels (int or None): width of the 3x3 convolution between two 1x1; None for
            the basic block.
        dilation (int): dilation of the 3x3 convolutions.
        srelu_init (float): start of the SReLU thresholds b.
        srelu_learnable (bool): whether the thresholds are learned.
        scale_init (float): start of s.
        channel_scales (bool): a scale for each input channel of the branch's last convolution, not one.
        signal (Signal): how the convolutions start, and their gains.

    Source: paper, Sections 3 and 4.1; report, Section 3.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        stride,
        residual,
        bottleneck_channels=None,
        dilation=1,
        srelu_init=-1.0,
        srelu_learnable=True,
        scale_init=0.0,
        channel_scales=False,
        signal=PAPER,
    ):
        super().__init__(in_channels, out_channels, stride)
        if bottleneck_channels is None:
            convs = [
                signal.conv(in_channels, out_channels, 3, stride, dilation),
                signal.conv(out_channels, out_channels, 3, 1, dilation),
            ]
        else:
            convs = [
                signal.conv(in_channels, bottleneck_channels, 1),
                signal.conv(bottleneck_channels, bottleneck_channels, 3, stride, dilation),
                signal.conv(bottleneck_channels, out_channels, 1),
            ]
        branch = OrderedDict()
        for i, conv in enumerate(convs, start=1):
            branch[f"conv{i}"] = conv
            if i < len(convs):
                branch[f"srelu{i}"] = SReLU(
                    conv.out_channels, init=srelu_init, learnable=srelu_learnable, inplace=True
                )
        self.branch = nn.Sequential(branch)
        self.residual = residual
        self.scale = None
        if residual:
            self.scale = SharedScale(scale_init, convs[-1].in_channels if channel_scales else None)
        projects = residual and (in_channels != out_channels or stride != 1)
        self.shortcut = signal.conv(in_channels, out_channels, 1, stride) if projects else None
        # in place of the branch's output, never of the shortcut, which may be the input of the block
        self.srelu = SReLU(out_channels, init=srelu_init, learnable=srelu_learnable, inplace=True)

    def forward(self, x):
        if not self.residual:
            return self.srelu(self.branch(x))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if self.scale is None:
            return self.srelu(self.branch(x), shortcut)
        *inner, last = self.branch
        for module in inner:
            x = module(x)
        if isinstance(last, ScaledConv2d):
            # s in the weight: s * f(x) would keep f(x) for the gradient of s
            return self.srelu(last(x, self.scale.scale), shortcut)
        x = self.scale(last(x)) if self.scale.scale.dim() == 0 else last(self.scale(x))
        return self.srelu(x, shortcut)


class IsoStage(nn.Sequential):
    """Blocks one after the other; when `checkpointed`, training keeps nothing but their input.

    Args:
        blocks (nn.Module): in their order.
        checkpointed (bool): compute what is between again in backward: less memory for one more forward
            pass.
    """

    def __init__(self, *blocks, checkpointed=False):
        super().__init__(*blocks)
        self.checkpointed = checkpointed

    def forward(self, x):
        if self.checkpointed and self.training and torch.is_grad_enabled():
            # nothing in a stage is random
            return checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)
        return super().forward(x)


def make_iso_stage(
    num_blocks,
    in_channels,
    out_channels,
    first_stride,
    residual,
    bottleneck=False,
    dilation=1,
    checkpointed=False,
    **block_args,
):
    """A stage: `num_blocks` blocks, of which the first changes width and size.

    Args:
        num_blocks (int): how many blocks.
        in_channels (int): width of the input.
        out_channels (int): width of every block's output.
        first_stride (int): stride of the first block.
        residual (bool): as in :class:`IsoBlock`.
        bottleneck (bool): bottleneck blocks, a quarter of `out_channels` wide, or basic ones.
        dilation (int): dilation of the 3x3 convolutions of every block.
        checkpointed (bool): as in :class:`IsoStage`.
        block_args: srelu_init, srelu_learnable, scale_init, channel_scales, signal of :class:`IsoBlock`.

    Returns:
        IsoStage: of :class:`IsoBlock`.
    """
    return IsoStage(
        *(
            IsoBlock(
                in_channels if i == 0 else out_channels,
                out_channels,
                first_stride if i == 0 else 1,
                residual,
                bottleneck_channels=out_channels // 4 if bottleneck else None,
                dilation=dilation,
                **block_args,
            )
            for i in range(num_blocks)
        ),
        checkpointed=checkpointed,
    )
