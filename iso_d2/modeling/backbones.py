"""Registered backbone builders: they read a Detectron2 config and build an ISONet, with an FPN or without.

A config without iso_d2's keys gets their defaults, so a stock Detectron2 config needs only
``MODEL.BACKBONE.NAME``.
"""

import logging
import math

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from .. import isometry
from ..config import add_iso_config
from .isonet import ISONet

# Keys of MODEL.ISONET that are read elsewhere; all others are arguments of ISONet
OTHER_KEYS = ("OUT_FEATURES", "CHECKPOINT_STAGES", "DELTA_INIT")


def with_iso_config(cfg):
    """The config itself, or a copy with iso_d2's defaults if it has none of its keys."""
    if "ISONET" not in cfg.MODEL:
        cfg = cfg.clone()
        cfg.defrost()
        add_iso_config(cfg)
    return cfg


def _build_isonet(cfg, input_shape, out_features):
    cfg = with_iso_config(cfg)
    node, classifier = cfg.MODEL.ISONET, cfg.MODEL.CLASSIFIER
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if freeze_at > 0 and not cfg.MODEL.WEIGHTS:
        logging.getLogger(__name__).warning(
            "MODEL.BACKBONE.FREEZE_AT is %d while MODEL.WEIGHTS is empty: the first layers of ISONet stay "
            "as they were initialised. Set MODEL.BACKBONE.FREEZE_AT 0 to train from scratch.",
            freeze_at,
        )
    in_head = {"res5"} if cfg.MODEL.ROI_HEADS.NAME == "ISORes5ROIHeads" else set()
    net = ISONet(
        in_channels=input_shape.channels,
        out_features=out_features,
        num_classes=classifier.NUM_CLASSES if "linear" in out_features else None,
        dropout=classifier.DROPOUT,
        freeze_at=freeze_at,
        checkpoint_stages=[name for name in node.CHECKPOINT_STAGES if name not in in_head],
        **{key.lower(): value for key, value in node.items() if key not in OTHER_KEYS},
    )
    return net if node.DELTA_INIT else without_delta(net)


def without_delta(net):
    """Initialise an ISONet or a stage of one like Detectron2's ResNets, in place, and return it.

    Kaiming normal by fan-out. A 7x7 stem stays as it is, since it does not start as a delta kernel anyway.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (7, 7):
            c2_msra_fill(module)
            module.gain = 1.0
        if hasattr(module, "centred"):
            module.centred = False
    return net


def _build_fpn(cfg, input_shape, in_features, top_block):
    """FPN over the stages that ``MODEL.FPN.IN_FEATURES`` names (`in_features` when it is empty)."""
    in_features = cfg.MODEL.FPN.IN_FEATURES or in_features
    bottom_up = _build_isonet(cfg, input_shape, in_features)
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block(in_features[-1], bottom_up.output_shape()[in_features[-1]]),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_isonet_backbone(cfg, input_shape: ShapeSpec):
    """ISONet with the features of ``MODEL.ISONET.OUT_FEATURES``.

    Args:
        cfg (CfgNode): ``MODEL.ISONET`` and ``MODEL.BACKBONE.FREEZE_AT`` are read, and for the feature
            "linear" ``MODEL.CLASSIFIER``.
        input_shape (ShapeSpec): its `channels` are those of the image.

    Returns:
        ISONet
    """
    return _build_isonet(cfg, input_shape, list(with_iso_config(cfg).MODEL.ISONET.OUT_FEATURES))


@BACKBONE_REGISTRY.register()
def build_isonet_fpn_backbone(cfg, input_shape: ShapeSpec):
    """FPN with p2 to p5 over ISONet and a max-pooled p6, as Faster and Mask R-CNN take it.

    Arguments as of :func:`build_isonet_backbone`, but ``MODEL.FPN`` is read in place of OUT_FEATURES; an
    empty ``FPN.IN_FEATURES`` means res2 to res5.
    """
    in_features = ["res2", "res3", "res4", "res5"]
    return _build_fpn(cfg, input_shape, in_features, _pooled)


def _pooled(_, last):
    level = LastLevelMaxPool()
    level.in_feature = f"p{int(math.log2(last.stride))}"  # Detectron2 takes p5 for the last one
    return level


@BACKBONE_REGISTRY.register()
def build_retinanet_isonet_fpn_backbone(cfg, input_shape: ShapeSpec):
    """FPN with p3 to p5 over ISONet, and p6 and p7 convolved from res5, as RetinaNet takes it.

    Arguments as of :func:`build_isonet_fpn_backbone`; an empty ``FPN.IN_FEATURES`` means res3 to res5.
    """
    return _build_fpn(
        cfg,
        input_shape,
        ["res3", "res4", "res5"],
        lambda name, last: LastLevelP6P7(last.channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=name),
    )


class IsometrizedBackbone(Backbone):
    """A network of :func:`iso_d2.isometry.isometrize`, as the module `net`, with the interface of a Backbone.

    Args:
        net (nn.Module): image -> features by name.
        like (Backbone): the backbone whose shapes, strides and padding it has.
    """

    def __init__(self, net, like):
        super().__init__()
        self.net = net
        self._shapes = like.output_shape()
        self._padding = like.size_divisibility, dict(like.padding_constraints)

    def forward(self, x):
        """As of the backbone that it is like."""
        return self.net(x)

    def output_shape(self):
        """dict[str, ShapeSpec]: channels and stride of each output feature."""
        return dict(self._shapes)

    @property
    def size_divisibility(self):
        return self._padding[0]

    @property
    def padding_constraints(self):
        return self._padding[1]


def isometrize(model, example_inputs, signal="scaled"):
    """:func:`iso_d2.isometry.isometrize`, which gives an :class:`IsometrizedBackbone` for a Backbone."""
    net, report = isometry.isometrize(model, example_inputs, signal)
    return (IsometrizedBackbone(net, model) if isinstance(model, Backbone) else net), report


@BACKBONE_REGISTRY.register()
def build_isometrized_backbone(cfg, input_shape: ShapeSpec):
    """The backbone of another builder without its normalization, isometric: see :func:`isometrize`.

    Args:
        cfg (CfgNode): of ``MODEL.ISOMETRIZED`` BACKBONE, the builder's name, and IMAGE_SIZE;
            ``MODEL.ISONET.SIGNAL``; what that builder reads. All layers are trained, whatever
            ``MODEL.BACKBONE.FREEZE_AT`` says.
        input_shape (ShapeSpec): its `channels` are those of the image.

    Returns:
        IsometrizedBackbone

    Raises:
        ValueError: no such builder; images of a size that is no multiple of its ``size_divisibility``, such
            as 32 of an FPN; as of :func:`iso_d2.isometry.isometrize`.
    """
    cfg = with_iso_config(cfg)
    node = cfg.MODEL.ISOMETRIZED
    if node.BACKBONE not in BACKBONE_REGISTRY or node.BACKBONE == "build_isometrized_backbone":
        raise ValueError(
            f"MODEL.ISOMETRIZED.BACKBONE must name another registered backbone, got {node.BACKBONE!r}"
        )
    backbone = BACKBONE_REGISTRY.get(node.BACKBONE)(cfg, input_shape)
    divisor = max(backbone.size_divisibility, 1)
    if node.IMAGE_SIZE < 1 or node.IMAGE_SIZE % divisor:
        raise ValueError(
            f"MODEL.ISOMETRIZED.IMAGE_SIZE must be a positive multiple of {divisor} for {node.BACKBONE}, got "
            f"{node.IMAGE_SIZE}"
        )
    images = torch.zeros(2, input_shape.channels, node.IMAGE_SIZE, node.IMAGE_SIZE)
    network, report = isometrize(backbone, images, cfg.MODEL.ISONET.SIGNAL)
    logging.getLogger(__name__).info("isometrized %s: %s", node.BACKBONE, report)
    return network
