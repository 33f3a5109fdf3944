"""The C4 ROI heads with a res5 of ISONet blocks."""

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads

from .backbones import isonet_config, isonet_options
from .blocks import make_iso_stage
from .isonet import iso_block_args, isonet_layout


@ROI_HEADS_REGISTRY.register()
class ISORes5ROIHeads(Res5ROIHeads):
    """Detectron2's ``Res5ROIHeads``, whose per-region res5 is the last stage of the ISONet backbone.

    Depth, residual form, thresholds, scales and activation checkpointing come from ``MODEL.ISONET``, so
    weights of a whole ISONet fill backbone and head alike. The stock class would build ResNet blocks with
    frozen norm.
    """

    @classmethod
    def _build_res5_block(cls, cfg):
        node = isonet_config(cfg)
        layout = isonet_layout(node.DEPTH, node.STEM)
        if node.RES5_DILATION != 1:
            raise ValueError(
                "ISORes5ROIHeads has no dilated res5: set MODEL.ISONET.RES5_DILATION 1, "
                f"got {node.RES5_DILATION}"
            )
        if len(layout.blocks) != 4:
            raise ValueError(
                f"ISORes5ROIHeads needs an ISONet with a res5, got MODEL.ISONET.DEPTH {node.DEPTH}, "
                f"which ends at res{len(layout.blocks) + 1}"
            )
        stage = make_iso_stage(
            layout.blocks[-1],
            layout.channels[-2],
            layout.channels[-1],
            2,
            node.RESIDUAL,
            bottleneck=layout.bottleneck,
            checkpointed="res5" in node.CHECKPOINT_STAGES,
            **iso_block_args(layout, **isonet_options(node)),
        )
        return stage, layout.channels[-1]
