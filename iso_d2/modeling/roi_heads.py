"""The C4 ROI heads with a res5 of ISONet blocks."""

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads

from .backbones import with_iso_config, without_delta
from .blocks import make_iso_stage
from .isonet import isonet_layout
from .signal import Signal


@ROI_HEADS_REGISTRY.register()
class ISORes5ROIHeads(Res5ROIHeads):
    """Detectron2's ``Res5ROIHeads``, whose per-region res5 is the last stage of the ISONet backbone.

    Depth, residual form, thresholds, scales, initialisation and activation checkpointing come from
    ``MODEL.ISONET``, so the weights of a whole ISONet fill both backbone and head. The stock class would
    build ResNet blocks with frozen norm.
    """

    @classmethod
    def _build_res5_block(cls, cfg):
        node = with_iso_config(cfg).MODEL.ISONET
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
        keys = ("METRIC", "SRELU_GAIN", "CENTRED", "SRELU_INIT", "SRELU_LEARNABLE")
        signal = Signal(node.SIGNAL, node.INIT, **{key.lower(): node[key] for key in keys})
        scales = node.SCALE_INIT, node.CHANNEL_SCALES
        checkpointed = "res5" in node.CHECKPOINT_STAGES
        stage = make_iso_stage(layout, 3, node.RESIDUAL, signal, *scales, checkpointed=checkpointed)
        return stage if node.DELTA_INIT else without_delta(stage), layout.channels[-1]
