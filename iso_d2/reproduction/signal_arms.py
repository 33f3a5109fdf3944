"""Scaled isometry beside the paper's signal and batch norm, at sizes that a CPU trains: docs/signal.md.

Every arm has the best of the learning rates tried, with one seed and on images that its table does not show
(``cifar10_val5k``, the LGG split "tune", ``shapes_tune``): docs/signal.md, results/signal_rates.json.
"""

from .arm import CPU_COMMON, Arm, Run, options
from .cifar_arms import short_cifar
from .coco_arms import RESNET18
from .mri_arms import short_mri

NOT_FULL = "a comparison of short trainings"
EPOCHS = 10
BF16 = options(SOLVER__AMP__ENABLED=True, SOLVER__AMP__PRECISION="bf16")


def scaled(threshold, clip, **more):
    """Options of a scaled ISONet; gradients are clipped, since a single batch can throw it far."""
    return options(
        MODEL__ISONET__SIGNAL="scaled",
        MODEL__ISONET__SRELU_INIT=threshold,
        SOLVER__CLIP_GRADIENTS__ENABLED=True,
        SOLVER__CLIP_GRADIENTS__CLIP_TYPE="norm",
        SOLVER__CLIP_GRADIENTS__CLIP_VALUE=clip,
        **more,
    )


# Key -> label, config, changes
CIFAR = {
    "risonet": (
        "R-ISONet-20, scaled",
        "risonet18",
        scaled(-0.5, 5.0, MODEL__ISONET__SCALE_INIT=1.0, SOLVER__BASE_LR=0.03),
    ),
    "resnet-bn": ("ResNet-20, batch norm", "resnet18", options(SOLVER__BASE_LR=0.2)),
    "isonet": (
        "ISONet-20, scaled (no skip connection)",
        "isonet18",
        scaled(-1.0, 1.0, SOLVER__BASE_LR=0.03),
    ),
}
LGG = {
    "isounet": (
        "ISO-UNet, scaled",
        "isounet",
        options(MODEL__UNET__SIGNAL="scaled", ISO__ORTHO__MODE="auto", SOLVER__BASE_LR=0.025),
    ),
    "unet-bn": ("UNet, batch norm", "unet", options(SOLVER__BASE_LR=0.025)),
}
# One detector on four backbones, which sees the same number of generated scenes in steps of 1, 2 or 8.
# Detectron2's frozen batch norm starts as the identity: from scratch it is no norm.
DETECTOR = "configs/quick/risonet18_frcnn_shapes.yaml"
RESNET18_FPN = (
    *RESNET18,
    *options(
        MODEL__BACKBONE__NAME="build_resnet_fpn_backbone",
        MODEL__RESNETS__OUT_FEATURES="['res2', 'res3', 'res4', 'res5']",
        ISO__ORTHO__COEFF=0.0,
    ),
)
# Key -> network, changes, size of a batch -> learning rate for each of its images: the best of three on
# ``shapes_tune``, one seed, results/signal_rates.json
SCENES = {
    "risonet": ("R-ISONet-18", (), {1: 0.01, 2: 0.005, 8: 0.005}),
    "bn": (
        "ResNet-18, batch norm",
        (*RESNET18_FPN, *options(MODEL__RESNETS__NORM="BN")),
        {1: 0.01, 2: 0.01, 8: 0.005},
    ),
    "gn": (
        "ResNet-18, group norm",
        (*RESNET18_FPN, *options(MODEL__RESNETS__NORM="GN")),
        {1: 0.01, 2: 0.005, 8: 0.0025},
    ),
    "nonorm": (
        "ResNet-18, no norm",
        (*RESNET18_FPN, *options(MODEL__RESNETS__NORM="''")),
        {1: 0.005, 2: 0.01, 8: 0.005},
    ),
}
SCENES_BATCHES, SCENES_SEEN = (1, 2, 8), 800


def signal_arms():
    """The arms on brain MRI, on CIFAR-10, and on generated scenes by the size of a batch."""
    for key, (label, config, changes) in LGG.items():
        split = options(DATASETS__LGG_SPLIT="patient")
        run = short_mri(label, config, split, EPOCHS, 0.12, *BF16, *changes, train_set=False)
        yield _arm("lgg", key, label, ("lgg",), run)
    for key, (label, config, changes) in CIFAR.items():
        every_other = options(TEST__EVAL_PERIOD=782)
        config = f"configs/cifar/{config}_cifar10.yaml"
        run = short_cifar(label, config, EPOCHS, *BF16, *every_other, *changes, train_set=False)
        yield _arm("cifar", key, label, ("cifar10",), run)
    for batch in SCENES_BATCHES:
        for key, (net, changes, rates) in SCENES.items():
            label = f"{net}, {batch} image{'s'[: batch > 1]} a step"
            yield _arm(
                "scenes", f"{key}-batch{batch}", label, (), scenes_run(net, batch, rates[batch], changes)
            )


def scenes_run(net, batch, rate, changes):
    """Run: the quick detector on generated scenes in steps of `batch`."""
    steps = SCENES_SEEN // batch
    schedule = options(
        SOLVER__IMS_PER_BATCH=batch,
        SOLVER__BASE_LR=rate * batch,
        SOLVER__WARMUP_ITERS=steps // 10,
        SOLVER__STEPS=f"({steps * 3 // 4}, {steps * 9 // 10})",
        SOLVER__MAX_ITER=steps,
        SOLVER__CHECKPOINT_PERIOD=steps,
    )
    return Run(
        net=f"{net} FPN",
        config=DETECTOR,
        options=(*changes, *schedule, *CPU_COMMON),
        setup=f"Faster R-CNN, FPN 64 wide, 128x160, {SCENES_SEEN} images in steps of {batch}, a tenth of "
        "them warm-up, rate x0.1 after three quarters and nine tenths, gradients clipped at norm 1",
        seconds=0.1 * batch,
    )


def _arm(kind, key, label, needs, run):
    return Arm(
        name=f"signal-{kind}-{key}",
        group="signal",
        table=f"signal-{kind}",
        label=label,
        needs=needs,
        full=NOT_FULL,
        medium=run,
        small=NOT_FULL,
    )
