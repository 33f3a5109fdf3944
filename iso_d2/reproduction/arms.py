"""The experiments of the report, and what stands beside them, in the order in which they are run.

Report: "Deep Isometric Learning for Visual Recognition", project report, IE663, 2021.
"""

from .cifar_arms import ablation_arms, crop_arms, isonet_arms, resnet_arms
from .coco_arms import batch_arms, norm_arms, pretrained_arms, report_arms
from .mri_arms import mri_arms
from .signal_arms import signal_arms

# The report's own arms come first, then what tells where their results come from.
ARMS = [
    *isonet_arms(10, "1e-4"),
    *mri_arms("image", "isounet", "unet-bn"),
    *isonet_arms(100, "1e-4"),
    *report_arms(),
    *mri_arms("patient", "isounet", "unet-bn"),
    *isonet_arms(10, "3e-4"),
    *isonet_arms(100, "3e-4"),
    *ablation_arms(),
    *crop_arms(10),
    *crop_arms(100),
    *resnet_arms(10),
    *resnet_arms(100),
    *mri_arms("image", "isounet-delta", "unet-relu"),
    *mri_arms("patient", "unet-relu"),
    *norm_arms(),
    *batch_arms(1),
    *batch_arms(2),
    *pretrained_arms(),
    *signal_arms(),
]


def in_order(scale):
    """list[Arm]: all of them, as they are run at a scale. On a CPU the ablation comes last, since in so few
    epochs it says least."""
    return sorted(ARMS, key=lambda arm: scale != "full" and arm.table == "ablation")
