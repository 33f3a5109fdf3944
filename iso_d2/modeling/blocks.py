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

from ..isometry import ScaledConv2d, SharedScale
from .signal import PAPER

logger = logging.getLogger(__name__)


class Stem(CNNBlockBase):
    """The first convolution with its SReLU; the "imagenet" kind adds max-pooling.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)

    Args:
        in_channels (int): channels of the image.
        out_channels (int): width.
        kind (str): "imagenet": a 7x7 convolution of stride 2 and 3x3 max-pooling of stride 2 (stride 4 in
            all). With the paper's signal it has PyTorch's default initialisation. "cifar": a 3x3 convolution
            of stride 1.
        signal (Signal): how the convolution starts.
        whiten (bool): the convolution is not trained. :class:`~iso_d2.engine.WhiteningHook` sets it to whiten
            the images before the first step; a first step without that gives a warning.
    """

    # is_set: the convolution has its weight from WhiteningHook or a state dict; warned: a warning was given
    is_set = warned = False

    def __init__(self, in_channels, out_channels, kind, signal=PAPER, whiten=False):
        imagenet = kind == "imagenet"
        super().__init__(in_channels, out_channels, 4 if imagenet else 1)
        kernel_size, stride = (7, 2) if imagenet else (3, 1)
        self.conv = signal.conv(in_channels, out_channels, kernel_size, stride, reads_srelu=False)
        if imagenet and not signal.scaled:
            self.conv.reset_parameters()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        self.whiten = whiten
        self.conv.requires_grad_(not whiten)
        self.srelu = signal.srelu(out_channels)

    def forward(self, x):
        is_missing = self.whiten and self.training and not (self.is_set or self.warned)
        if is_missing and not torch.compiler.is_compiling():
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

    The branch f is 3x3, SReLU, 3x3, or with a bottleneck 1x1, SReLU, 3x3, SReLU, 1x1. The stride sits on the
    first 3x3. Where the shape changes, a 1x1 convolution projects x in the residual form. At the start a
    residual block without projection is exactly ``max(x, b)``.

    Args:
        in_channels (int): width of the input.
        out_channels (int): width of the output.
        stride (int): stride of the block.
        residual (bool): R-ISONet's form with a skip connection and one learnable scale s.
        bottleneck_channels (int or None): width of the 3x3 convolution between two 1x1; None: the basic
        block.
        dilation (int): dilation of the 3x3 convolutions.
        scale_init (float): start of s.
        channel_scales (bool): a scale for each input channel of the branch's last convolution, not one for
        all.
        signal (Signal): how the convolutions start, their gains, and the SReLU thresholds.

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
                branch[f"srelu{i}"] = signal.srelu(conv.out_channels)
        self.branch = nn.Sequential(branch)
        self.residual = residual
        scales = convs[-1].in_channels if channel_scales else None
        self.scale = SharedScale(scale_init, scales) if residual else None
        projects = residual and (in_channels != out_channels or stride != 1)
        self.shortcut = signal.conv(in_channels, out_channels, 1, stride) if projects else None
        # overwrites the branch's output, never the shortcut, which may be the input of the block
        self.srelu = signal.srelu(out_channels)

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
            # s scales the weight: s * f(x) would keep f(x) for the gradient of s
            return self.srelu(last(x, self.scale.scale), shortcut)
        x = self.scale(last(x)) if self.scale.scale.dim() == 0 else last(self.scale(x))
        return self.srelu(x, shortcut)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.residual and self.scale is None and prefix + "scale.scale" in state_dict:
            raise ValueError(
                f"{prefix}scale.scale of the state dict has no place: fold_scales_ has multiplied the scales "
                "of this model into its weights. Load the state dict into a new model, then fold that"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class IsoStage(nn.Sequential):
    """Blocks one after the other; when `checkpointed`, training keeps only their input.

    Args:
        blocks (nn.Module): in their order.
        checkpointed (bool): compute everything else again in backward: less memory for one more forward pass.
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
    layout, index, residual, signal, scale_init=None, channel_scales=False, dilation=1, checkpointed=False
):
    """Stage number `index` (res2 is 0) of a layout; its first block changes width and size.

    Args:
        layout (Layout): see :func:`~iso_d2.modeling.isonet.isonet_layout`.
        index (int): which of its stages.
        residual, signal, channel_scales: as in :class:`IsoBlock`.
        scale_init (float or None): as in IsoBlock; None: as the signal says.
        dilation (int): of the 3x3 convolutions of every block; above 1 the stage keeps the size.
        checkpointed (bool): as in :class:`IsoStage`.

    Returns:
        IsoStage: of :class:`IsoBlock`.
    """
    if scale_init is None:
        scale_init = signal.residual_scale(sum(layout.blocks))
    if isinstance(scale_init, str):
        raise ValueError(f"scale_init (MODEL.ISONET.SCALE_INIT) must be a number or None, got {scale_init!r}")
    inputs, outputs = (layout.stem_channels, *layout.channels)[index : index + 2]
    neck = outputs // 4 if layout.bottleneck else None
    shapes = [(inputs, outputs, 2 if index > 0 and dilation == 1 else 1)]
    shapes += [(outputs, outputs, 1)] * (layout.blocks[index] - 1)
    options = (residual, neck, dilation, scale_init, channel_scales, signal)
    return IsoStage(*(IsoBlock(*shape, *options) for shape in shapes), checkpointed=checkpointed)
