"""ISONet and R-ISONet: ResNet layouts without normalization, kept near an isometry.

Qi, You, Wang, Ma, Malik: Deep Isometric Learning for Visual Recognition, ICML 2020
(https://arxiv.org/abs/2006.16992). Layers, their order and their initialisation are those of the
authors' code; the interface is that of Detectron2's ResNet, so that each stage can be an output.
"""

import math
from dataclasses import dataclass

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn

from ..isometry import ScaledLinear, centre_
from .blocks import Stem, make_iso_stage
from .signal import Signal


@dataclass(frozen=True)
class Layout:
    """Blocks and output widths of the stages res2, res3, ...; bottleneck blocks or basic ones."""

    blocks: tuple
    channels: tuple
    bottleneck: bool = False
    stem_channels: int = 64


# Side in pixels of the images that a stem is made for
IMAGE_SIZE = {"cifar": 32, "imagenet": 224}
LAYOUTS = {
    18: Layout((2, 2, 2, 2), (64, 128, 256, 512)),
    34: Layout((3, 4, 6, 3), (64, 128, 256, 512)),
    50: Layout((3, 4, 6, 3), (256, 512, 1024, 2048), bottleneck=True),
    101: Layout((3, 4, 23, 3), (256, 512, 1024, 2048), bottleneck=True),
    152: Layout((3, 8, 36, 3), (256, 512, 1024, 2048), bottleneck=True),
}


def isonet_layout(depth, stem="imagenet"):
    """The layout of a depth: four stages for 18, 34, 50, 101, 152, else the narrow 6n+2 CIFAR nets.

    Raises:
        ValueError: the depth or the stem is unknown, or the two do not go together.
    """
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f"ISONet stem must be 'imagenet' or 'cifar', got {stem!r}")
    if depth in LAYOUTS:
        return LAYOUTS[depth]
    if stem == "cifar" and depth >= 8 and (depth - 2) % 6 == 0:
        return Layout(((depth - 2) // 6,) * 3, (16, 32, 64), stem_channels=16)
    raise ValueError(
        f"ISONet depth must be one of {', '.join(map(str, LAYOUTS))} (or 6n+2 with stem='cifar'), "
        f"got {depth} with stem={stem!r}"
    )


def residual_scale(layout, signal, scale_init=None):
    """Where the residual scales of a net start.

    Args:
        layout (Layout): its `blocks` are counted.
        signal (Signal): of the net.
        scale_init (float or None): None: 0 with the paper's signal. With "scaled" 1 / sqrt(blocks): branches
            that do not depend on each other then add up to the size of their sum's first term.

    Returns:
        float

    Source: ReZero (Bachlechner et al., 2020, https://arxiv.org/abs/2003.04887, eq. (4)) and the paper for 0;
    SkipInit (De, Smith, 2020, https://arxiv.org/abs/2002.10444, section 4) for 1 / sqrt(blocks).
    """
    if scale_init is not None:
        return scale_init
    return 1 / math.sqrt(sum(layout.blocks)) if signal.scaled else 0.0


def iso_block_args(
    layout,
    srelu_init=-1.0,
    srelu_learnable=True,
    scale_init=None,
    channel_scales=False,
    signal="paper",
    init=None,
    metric=False,
    srelu_gain=False,
    centred=None,
):
    """What every block of a net takes, from the arguments of the same names of :class:`ISONet`.

    Returns:
        dict: keyword arguments of :class:`~iso_d2.modeling.blocks.IsoBlock`.
    """
    centred = signal == "scaled" if centred is None else centred
    signal = Signal(signal, init, metric, srelu_init if srelu_gain else None, centred)
    return {
        "srelu_init": srelu_init,
        "srelu_learnable": srelu_learnable,
        "scale_init": residual_scale(layout, signal, scale_init),
        "channel_scales": channel_scales,
        "signal": signal,
    }


class ISONet(Backbone):
    """ISONet (``residual=False``) or R-ISONet (``residual=True``) as a Detectron2 backbone.

    Only the stages that some output feature needs are built. No normalization layer, no bias on any
    convolution. With ``signal="paper"`` every convolution but the 7x7 stem starts as a delta kernel. With
    ``signal="scaled"`` each starts as a random isometry and has the gain that keeps the mean square of its
    values, see :class:`~iso_d2.modeling.signal.Signal`; and the linear layer has one, too, for the average
    over all pixels of images of 32x32 ("cifar" stem) or 224x224 ("imagenet").

    Args:
        depth (int): 18, 34 (basic blocks), 50, 101, 152 (bottleneck blocks), all of four stages and
            with either stem; with ``stem="cifar"`` also 6n+2: three stages 16, 32, 64 wide.
        residual (bool): R-ISONet or ISONet.
        in_channels (int): channels of the image.
        stem (str): "imagenet" (stride 4) or "cifar" (stride 1).
        out_features (sequence of str or None): of "stem", "res2", "res3", "res4", "res5", "linear".
            None: "linear" if `num_classes` is given, else the last stage.
        num_classes (int or None): width of "linear": global average pooling, dropout, linear layer.
        srelu_init (float): start of the SReLU thresholds.
        srelu_learnable (bool): whether the thresholds are learned.
        scale_init (float or None): start of the residual scales; None: see :func:`residual_scale`.
        dropout (float): probability of dropout before the linear layer.
        freeze_at (int): as in :meth:`freeze`.
        res5_dilation (int): 2 keeps res5 at the stride of res4 with dilated kernels (DC5).
        checkpoint_stages (sequence of str): stages of which training keeps nothing but the input and
            computes the rest again in backward: less memory for one more forward pass of theirs.
        signal (str): "paper" or "scaled".
        init (str or None): "delta", "orthogonal" or "random", see :class:`~iso_d2.modeling.signal.Signal`;
            None: as the signal says. A 7x7 stem with the paper's signal has PyTorch's own in any case.
        metric (bool): every convolution learns a factor for each of its input channels.
        srelu_gain (bool): with "scaled", gains make good what an SReLU takes from a standard normal input.
        channel_scales (bool): a residual scale for each input channel of a branch's last convolution.
        centred (bool or None): the blocks' kernels of more than one tap and the linear layer keep the mean
            0, see :class:`~iso_d2.modeling.signal.Signal`; None: with "scaled".
        whiten (bool or None): the stem's convolution whitens the images, see
            :class:`~iso_d2.modeling.blocks.Stem`; None: with "scaled".

    Raises:
        ValueError: unknown depth, stem, feature or stage; `num_classes` and "linear" not given together; a
            stage to be checkpointed that no output needs.

    Source: paper, Sections 3 and 4; report, Section 3.
    """

    def __init__(
        self,
        depth,
        residual,
        in_channels=3,
        stem="imagenet",
        out_features=None,
        num_classes=None,
        srelu_init=-1.0,
        srelu_learnable=True,
        scale_init=None,
        dropout=0.0,
        freeze_at=0,
        res5_dilation=1,
        checkpoint_stages=(),
        signal="paper",
        init=None,
        metric=False,
        srelu_gain=False,
        channel_scales=False,
        centred=None,
        whiten=None,
    ):
        super().__init__()
        layout = isonet_layout(depth, stem)
        block_args = iso_block_args(
            layout,
            srelu_init,
            srelu_learnable,
            scale_init,
            channel_scales,
            signal,
            init,
            metric,
            srelu_gain,
            centred,
        )
        signal = block_args["signal"]
        whiten = signal.scaled if whiten is None else whiten
        stages = [f"res{i + 2}" for i in range(len(layout.blocks))]
        self._out_features = self._check_features(out_features, num_classes, stages)
        if res5_dilation not in (1, 2):
            raise ValueError(f"ISONet res5_dilation must be 1 or 2, got {res5_dilation}")
        self.stem = Stem(in_channels, layout.stem_channels, stem, srelu_init, srelu_learnable, signal, whiten)
        channels, stride = self.stem.out_channels, self.stem.stride
        shapes = {"stem": ShapeSpec(channels=channels, stride=stride)}
        self.stage_names = stages
        if "linear" not in self._out_features:
            used = [i for i, name in enumerate(stages) if name in self._out_features]
            self.stage_names = stages[: max(used, default=-1) + 1]
        if not set(checkpoint_stages) <= set(self.stage_names):
            raise ValueError(
                f"ISONet checkpoint_stages must be some of {', '.join(self.stage_names) or 'none'}, which "
                f"out_features {', '.join(self._out_features)} need, got {', '.join(checkpoint_stages)}"
            )
        for i, name in enumerate(self.stage_names):
            dilation = res5_dilation if name == "res5" else 1
            first_stride = 1 if i == 0 or dilation > 1 else 2
            stage = make_iso_stage(
                layout.blocks[i],
                channels,
                layout.channels[i],
                first_stride,
                residual,
                bottleneck=layout.bottleneck,
                dilation=dilation,
                checkpointed=name in checkpoint_stages,
                **block_args,
            )
            self.add_module(name, stage)
            channels, stride = layout.channels[i], stride * first_stride
            shapes[name] = ShapeSpec(channels=channels, stride=stride)
        if "linear" in self._out_features:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.dropout = nn.Dropout(dropout)
            # An average over n = (size / stride)^2 pixels leaves 1 / n of the mean square of values that do
            # not depend on each other. A residual net's sums have made it larger before: n^(1/4) is enough.
            side = IMAGE_SIZE[stem] / stride if signal.scaled else 1.0
            gain = math.sqrt(side) if residual else side
            self.linear = ScaledLinear(channels, num_classes, gain=gain)
            if signal.centred:
                centre_(self.linear.weight)
                self.linear.centred = True
            shapes["linear"] = ShapeSpec(channels=num_classes)
        self._shapes = {name: shapes[name] for name in self._out_features}
        self.freeze(freeze_at)

    @staticmethod
    def _check_features(out_features, num_classes, stages):
        if out_features is None:
            out_features = ["linear"] if num_classes else stages[-1:]
        known = ["stem", *stages, "linear"]
        unknown = [name for name in out_features if name not in known]
        if unknown or not out_features:
            raise ValueError(
                f"ISONet out_features must be some of {', '.join(known)}, got {list(out_features)}"
                + (f": {', '.join(map(repr, unknown))} unknown" if unknown else "")
            )
        if bool(num_classes) != ("linear" in out_features):
            raise ValueError(
                f"ISONet needs num_classes together with 'linear' among out_features, "
                f"got num_classes={num_classes} with out_features={list(out_features)}"
            )
        return list(out_features)

    def forward(self, x):
        """Features of a batch of images.

        Args:
            x (Tensor): float images (N, in_channels, H, W), normalised.

        Returns:
            dict[str, Tensor]: by name, (N, C, H / stride, W / stride) with C and stride as in
            :meth:`output_shape`, sizes rounded up; "linear" is (N, num_classes).
        """
        outputs = {}
        for name in ["stem", *self.stage_names]:
            x = outputs[name] = getattr(self, name)(x)
        if "linear" in self._out_features:
            outputs["linear"] = self.linear(self.dropout(self.avgpool(x).flatten(1)))
        return {name: outputs[name] for name in self._out_features}

    def output_shape(self):
        """dict[str, ShapeSpec]: channels and stride of each output feature."""
        return dict(self._shapes)

    def freeze(self, freeze_at=0):
        """Stop training the first parts: 1 the stem, 2 also res2, 3 also res3, ...; 0 nothing.

        Returns:
            ISONet: the net itself.
        """
        for level, name in enumerate(["stem", *self.stage_names], start=1):
            if level <= freeze_at:
                for parameter in getattr(self, name).parameters():
                    parameter.requires_grad = False
        return self
