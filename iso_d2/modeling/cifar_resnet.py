"""ResNets for 32x32 images, to compare with: the layouts of ISONet over Detectron2's blocks.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, Section 4.2. Unlike there,
a block that changes shape has a projection, as in ISONet.
"""

import fvcore.nn.weight_init as weight_init
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from torch import nn
from torch.nn import functional as F

from .isonet import isonet_layout


class CifarStem(CNNBlockBase):
    """A 3x3 convolution of stride 1, norm and ReLU: (N, in_channels, H, W) -> (N, out_channels, H, W)

    Args:
        in_channels (int): channels of the image.
        out_channels (int): width.
        norm (str): as in Detectron2's ``get_norm``; "" for none.
    """

    def __init__(self, in_channels, out_channels, norm):
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(
            in_channels, out_channels, 3, padding=1, bias=False, norm=get_norm(norm, out_channels)
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x):
        return F.relu_(self.conv1(x))


@BACKBONE_REGISTRY.register()
def build_cifar_resnet_backbone(cfg, input_shape):
    """Detectron2's ResNet with a 3x3 stem: 64 to 512 wide at depth 18, 34, else 6n+2, 16 to 64 wide.

    Convolutions are Kaiming-initialised and have no bias, so ``MODEL.RESNETS.NORM ""`` is the net
    without norm, delta initialisation, SReLU and scales. Group norm has Detectron2's 32 groups and, in
    layers of fewer than 64 channels, groups of two.

    Args:
        cfg (CfgNode): of ``MODEL.RESNETS`` DEPTH, NORM and OUT_FEATURES, and
            ``MODEL.BACKBONE.FREEZE_AT`` are read.
        input_shape (ShapeSpec): its `channels` are those of the image.

    Returns:
        ResNet

    Raises:
        ValueError: the depth is unknown.
    """
    node = cfg.MODEL.RESNETS
    layout = isonet_layout(node.DEPTH, "cifar")
    norm = _group_norm if node.NORM == "GN" else node.NORM
    stem = CifarStem(input_shape.channels, layout.stem_channels, norm)
    in_channels, stages = layout.stem_channels, []
    for num_blocks, out_channels in zip(layout.blocks, layout.channels, strict=True):
        widths = {"bottleneck_channels": out_channels // 4} if layout.bottleneck else {}
        stage = ResNet.make_stage(
            BottleneckBlock if layout.bottleneck else BasicBlock,
            num_blocks,
            in_channels=in_channels,
            out_channels=out_channels,
            stride_per_block=[2 if stages else 1] + [1] * (num_blocks - 1),
            norm=norm,
            **widths,
        )
        stages.append(stage)
        in_channels = out_channels
    return ResNet(stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _group_norm(channels):
    return nn.GroupNorm(min(32, channels // 2), channels)
