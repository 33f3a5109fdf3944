"""Scaled isometry beside the paper's signal and batch norm, at sizes that a CPU trains: docs/signal.md.

Every arm has the best of three learning rates, chosen on a part of the training images (``cifar10_val5k``,
the LGG split "tune") and with its seed 1 alone; results/signal_rates.json has them all.
"""

from .arm import Arm, options
from .cifar_arms import short_cifar
from .mri_arms import short_mri

NOT_FULL = "a comparison of short trainings"
EPOCHS = 10
BF16 = options(SOLVER__AMP__ENABLED=True, SOLVER__AMP__PRECISION="bf16")

# Without normalization a single batch can throw a network far; batch norm's rates are chosen without it.
CLIPPED = options(
    SOLVER__CLIP_GRADIENTS__ENABLED=True,
    SOLVER__CLIP_GRADIENTS__CLIP_TYPE="norm",
    SOLVER__CLIP_GRADIENTS__CLIP_VALUE=1.0,
)
SCALED = (*options(MODEL__ISONET__SIGNAL="scaled"), *CLIPPED)

# Key -> label, config, changes
CIFAR = {
    "risonet": (
        "R-ISONet-20, scaled",
        "risonet18",
        (*SCALED, *options(MODEL__ISONET__SCALE_INIT=1.0, SOLVER__BASE_LR=0.06)),
    ),
    "resnet-bn": ("ResNet-20, batch norm", "resnet18", options(SOLVER__BASE_LR=0.2)),
    "isonet": ("ISONet-20, scaled", "isonet18", (*SCALED, *options(SOLVER__BASE_LR=0.06))),
}
LGG = {
    "isounet": (
        "ISO-UNet, scaled",
        "isounet",
        options(MODEL__UNET__SIGNAL="scaled", ISO__ORTHO__MODE="auto", SOLVER__BASE_LR=0.025),
    ),
    "unet-bn": ("UNet, batch norm", "unet", options(SOLVER__BASE_LR=0.025)),
}


def signal_arms():
    """The arms on CIFAR-10 and on brain MRI."""
    for key, (label, config, changes) in LGG.items():
        split = options(DATASETS__LGG_SPLIT="patient")
        run = short_mri(label, config, split, EPOCHS, 0.12, *BF16, *changes, train_set=False)
        yield _arm("lgg", key, label, "lgg", run)
    for key, (label, config, changes) in CIFAR.items():
        every_other = options(TEST__EVAL_PERIOD=782)
        config = f"configs/cifar/{config}_cifar10.yaml"
        run = short_cifar(label, config, EPOCHS, *BF16, *every_other, *changes, train_set=False)
        yield _arm("cifar", key, label, "cifar10", run)


def _arm(kind, key, label, need, run):
    return Arm(
        name=f"signal-{kind}-{key}",
        group="signal",
        table=f"signal-{kind}",
        label=label,
        needs=(need,),
        full=NOT_FULL,
        medium=run,
        small=NOT_FULL,
    )
