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


# Side in pixels of the images that a stem is for
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


class ISONet(Backbone):
    """ISONet (``residual=False``) or R-ISONet (``residual=True``) as a Detectron2 backbone.

    It builds only the stages that some output feature needs. There is no normalization layer, and no
    convolution has a bias. With ``signal="paper"`` every convolution but the 7x7 stem starts as a delta
    kernel. With ``signal="scaled"`` each starts as a random isometry with the gain that keeps the mean square
    of its values, see :class:`~iso_d2.modeling.signal.Signal`. The linear layer has a gain, too, which makes
    up for the average over all pixels of images of 32x32 ("cifar" stem) or 224x224 ("imagenet").

    Args:
        depth (int): 18, 34 (basic blocks), 50, 101, 152 (bottleneck blocks), all of four stages and
            with either stem; with ``stem="cifar"`` also 6n+2: three stages 16, 32, 64 wide.
        residual (bool): R-ISONet or ISONet.
        in_channels (int): channels of the image.
        stem (str): "imagenet" (stride 4) or "cifar" (stride 1).
        out_features (sequence of str or None): of "stem", "res2", "res3", "res4", "res5", "linear".
            None: "linear" if `num_classes` is given, else the last stage.
        num_classes (int or None): width of "linear": global average pooling, dropout, linear layer.
        scale_init (float or None): start of the residual scales; None: as the signal says, see
            :meth:`~iso_d2.modeling.signal.Signal.residual_scale`.
        dropout (float): probability of dropout before the linear layer.
        freeze_at (int): as in :meth:`freeze`.
        res5_dilation (int): 2 keeps res5 at the stride of res4 with dilated kernels (DC5).
        checkpoint_stages (sequence of str): stages of which training keeps only the input and computes the
            rest again in backward: less memory for one more forward pass of these stages.
        signal, init (str): kind and start of the :class:`~iso_d2.modeling.signal.Signal`. A 7x7 stem with the
            paper's signal always has PyTorch's default.
        srelu_init, srelu_learnable, metric, srelu_gain, centred: of the signal; `centred` concerns the linear
            layer, too.
        channel_scales (bool): a residual scale for each input channel of a branch's last convolution.
        whiten (bool or None): the stem's convolution whitens the images, see
            :class:`~iso_d2.modeling.blocks.Stem`; None: with "scaled".

    Raises:
        ValueError: unknown depth, stem, feature or stage; `num_classes` and "linear" not given together; a
            checkpointed stage that no output needs; `centred` or `whiten` neither None nor a bool.

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
        signal = Signal(signal, init, metric, srelu_gain, centred, srelu_init, srelu_learnable)
        whiten = signal.unless_given("whiten", whiten)
        stages = [f"res{i + 2}" for i in range(len(layout.blocks))]
        self._out_features = self._check_features(out_features, num_classes, stages)
        if res5_dilation not in (1, 2):
            raise ValueError(f"ISONet res5_dilation must be 1 or 2, got {res5_dilation}")
        self.stem = Stem(in_channels, layout.stem_channels, stem, signal, whiten)
        self.stage_names = stages
        if "linear" not in self._out_features:
            used = [i for i, name in enumerate(stages) if name in self._out_features]
            self.stage_names = stages[: max(used, default=-1) + 1]
        if not set(checkpoint_stages) <= set(self.stage_names):
            raise ValueError(
                f"ISONet checkpoint_stages must be some of {', '.join(self.stage_names) or 'none'}, which "
                f"out_features {', '.join(self._out_features)} need, got {', '.join(checkpoint_stages)}"
            )
        shapes = {"stem": ShapeSpec(channels=layout.stem_channels, stride=self.stem.stride)}
        stride = self.stem.stride
        for i, name in enumerate(self.stage_names):
            options = res5_dilation if name == "res5" else 1, name in checkpoint_stages
            stage = make_iso_stage(layout, i, residual, signal, scale_init, channel_scales, *options)
            self.add_module(name, stage)
            stride *= stage[0].stride
            shapes[name] = ShapeSpec(channels=layout.channels[i], stride=stride)
        if "linear" in self._out_features:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.dropout = nn.Dropout(dropout)
            # An average over n = (size / stride)^2 pixels leaves 1 / n of the mean square of uncorrelated
            # values. The sums of a residual net have made it larger before, so n^(1/4) is enough there.
            side = IMAGE_SIZE[stem] / stride if signal.scaled else 1.0
            gain = math.sqrt(side) if residual else side
            self.linear = ScaledLinear(layout.channels[-1], num_classes, gain=gain)
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
            outputs[name] = x = getattr(self, name)(x)
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
        for name in ["stem", *self.stage_names][: max(0, freeze_at)]:
            getattr(self, name).requires_grad_(False)
        return self
