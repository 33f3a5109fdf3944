"""Persons, bicycles, cars: Faster R-CNN on R-ISONet and ResNet (report, Sections 5.2 and 6.2)."""

from .arm import CPU_COMMON, LEFT_OUT, PRETRAINING, Arm, Run, options

# Lengths on a CPU, by the images of a batch
COCO_ITERATIONS = {2: {"medium": 1000, "small": 400}, 1: {"medium": 600, "small": 240}}
FLIP = "['HorizontalFlip', {'p': 0.5}]"


def resize(side):
    return f"['Resize', {{'height': {side}, 'width': {side}}}]"


COCO_TEST_AND_TRAIN = options(DATASETS__TEST="('coco_pbc_test', 'coco_pbc_train')")
# What the FPNs have in common on a CPU: the widths of configs/quick/risonet18_frcnn_fpn_overfit8.yaml
NARROW_FPN = options(
    MODEL__FPN__OUT_CHANNELS=128,
    MODEL__ANCHOR_GENERATOR__SIZES="[[16], [32], [64], [128], [256]]",
    MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=64,
    MODEL__ROI_BOX_HEAD__FC_DIM=512,
    INPUT__ALBUMENTATIONS__TRAIN=f"[{resize(256)}, {FLIP}]",
    INPUT__ALBUMENTATIONS__TEST=f"[{resize(256)}]",
    SOLVER__CHECKPOINT_PERIOD=50,
)
RESNET18 = options(MODEL__RESNETS__DEPTH=18, MODEL__RESNETS__RES2_OUT_CHANNELS=64)
RISONET50_FPN, RESNET50_FPN = "configs/risonet50_frcnn_fpn.yaml", "configs/resnet50_frcnn_fpn.yaml"


def short_coco(net, batch, iterations):
    """Depth 18 with FPN at 256 px, at four times the rate of Base-Detection.yaml's rule: time is short."""
    risonet = net == "R-ISONet-18 FPN"
    schedule = options(
        SOLVER__IMS_PER_BATCH=batch,
        SOLVER__BASE_LR=0.005 * batch,
        SOLVER__WARMUP_ITERS=50,
        SOLVER__MAX_ITER=iterations,
        SOLVER__STEPS=f"({round(iterations * 0.8)},)",
        TEST__EVAL_PERIOD=iterations // 4,
    )
    return Run(
        net=net,
        config="configs/risonet18_frcnn_fpn.yaml" if risonet else RESNET50_FPN,
        options=(
            *(options(ISO__ORTHO__PERIOD=10) if risonet else RESNET18),
            *NARROW_FPN,
            *schedule,
            *CPU_COMMON,
        ),
        setup=f"depth 18 with FPN (128 wide), 256x256, {iterations} iterations of batch {batch}, "
        "rate x0.1 in the last fifth",
        seconds=0.95 if batch == 2 else 0.55,
    )


def short_runs(net, batch):
    """dict: the runs of an arm on a CPU, by scale."""
    return {scale: short_coco(net, batch, length) for scale, length in COCO_ITERATIONS[batch].items()}


def full_coco(net, config, *changes, batch=8, passes=36):
    """At batch 8 the schedule of Base-Detection.yaml; else in proportion, with its 500 steps of warm-up."""
    iterations = passes * 1000 // batch
    schedule = (
        options(
            SOLVER__IMS_PER_BATCH=batch,
            SOLVER__BASE_LR=0.00125 * batch,
            SOLVER__MAX_ITER=iterations,
            SOLVER__STEPS=f"({iterations * 2 // 3}, {iterations * 8 // 9})",
            SOLVER__CHECKPOINT_PERIOD=2000,
            TEST__EVAL_PERIOD=iterations // 3,
        )
        if batch != 8
        else ()
    )
    return Run(
        net=net,
        config=config,
        options=(*COCO_TEST_AND_TRAIN, *schedule, *changes),
        setup=f"512x512, {iterations:,} iterations of batch {batch} ({passes} passes over 1,000 images), "
        "rate x0.1 after two thirds and eight ninths",
    )


def coco_arm(name, table, label, full, short=LEFT_OUT, **more):
    return Arm(name, "coco", table, label, ("coco",), full, **short, **more)


def batch_arms(batch):
    """The reason to be norm-free: few images a batch. A third of the passes, since each costs more."""
    nets = {
        "risonet-fpn": ("R-ISONet FPN", RISONET50_FPN, "R-ISONet-18 FPN", ()),
        "resnet-fpn-bn": ("ResNet FPN, batch norm", RESNET50_FPN, "ResNet-18 FPN, batch norm", ()),
        "resnet-fpn-frozenbn": (
            "ResNet FPN, batch norm frozen at its start",
            RESNET50_FPN,
            "",
            options(MODEL__RESNETS__NORM="FrozenBN"),
        ),
        "resnet-fpn-gn": ("ResNet FPN, group norm", "configs/resnet50_gn_frcnn_fpn.yaml", "", ()),
    }
    for key, (label, config, short_net, changes) in nets.items():
        net = label.replace("Net FPN", "Net-50 FPN")
        yield coco_arm(
            f"coco-batch{batch}-{key}",
            f"coco-batch{batch}",
            label,
            full_coco(net, config, *changes, batch=batch, passes=12),
            short_runs(short_net, batch) if batch == 1 and short_net else LEFT_OUT,
        )


# Both backbones learn CIFAR-100, enlarged, before they learn to detect: equal starts without ImageNet.
CIFAR100_START = options(
    MODEL__ISONET__STEM="imagenet",
    MODEL__ISONET__DEPTH=50,
    INPUT__IN_MEMORY=False,
    INPUT__ALBUMENTATIONS__TRAIN=f"[{resize(96)}, {FLIP}]",
    INPUT__ALBUMENTATIONS__TEST=f"[{resize(96)}]",
    SOLVER__EPOCHS=30,
    SOLVER__EPOCH_STEPS="(15, 25)",
    SOLVER__WARMUP_EPOCHS=2,
    SOLVER__CHECKPOINT_PERIOD=1000,
    DATASETS__TEST="('cifar100_test',)",
    DATALOADER__NUM_WORKERS=8,
)
RESNET50 = options(
    MODEL__BACKBONE__NAME="build_resnet_backbone",
    MODEL__RESNETS__DEPTH=50,
    MODEL__RESNETS__STRIDE_IN_1X1=False,
)


def report_arms():
    """The report's pair: R-ISONet on its res5 alone, ResNet with FPN."""
    yield coco_arm(
        "coco-scratch-risonet-c5",
        "coco-scratch",
        "R-ISONet + Faster R-CNN (the report's)",
        full_coco("R-ISONet-50", "configs/risonet50_frcnn.yaml"),
    )
    yield coco_arm(
        "coco-scratch-resnet-fpn-bn",
        "coco-scratch",
        "ResNet FPN + Faster R-CNN, batch norm (the report's)",
        full_coco("ResNet-50 FPN, batch norm", RESNET50_FPN),
        short_runs("ResNet-18 FPN, batch norm", 2),
    )


def norm_arms():
    """The report's two differ in backbone and in FPN. With FPN in all, one thing differs at a time."""
    yield coco_arm(
        "coco-scratch-risonet-fpn",
        "coco-scratch",
        "R-ISONet FPN + Faster R-CNN",
        full_coco("R-ISONet-50 FPN", RISONET50_FPN),
        short_runs("R-ISONet-18 FPN", 2),
    )
    for norm, words in (("gn", "group norm"), ("nonorm", "ReLU, no norm")):
        yield coco_arm(
            f"coco-scratch-resnet-fpn-{norm}",
            "coco-scratch",
            f"ResNet FPN + Faster R-CNN, {words}",
            full_coco(f"ResNet-50 FPN, {words}", f"configs/resnet50_{norm}_frcnn_fpn.yaml"),
        )


def pretrained_arms():
    """R-ISONet and ResNet from starts of one kind: the user's ImageNet weights, or CIFAR-100."""
    pairs = {
        "risonet": ("R-ISONet", "configs/cifar/risonet18_cifar100.yaml", RISONET50_FPN, "", ()),
        "resnet": ("ResNet", "configs/cifar/resnet18_cifar100.yaml", RESNET50_FPN, ", batch norm", RESNET50),
    }
    for key, (family, config, _, words, changes) in pairs.items():
        net = f"{family}-50{words}"
        yield Arm(
            name=f"pretrain-cifar100-{key}",
            group="coco",
            table=PRETRAINING,
            label=net,
            needs=("cifar100",),
            full=Run(
                net,
                config,
                (*CIFAR100_START, *changes),
                "CIFAR-100 enlarged to 96x96, 30 epochs of batch 128, flip",
            ),
            **LEFT_OUT,
        )
    for key, (family, _, config, words, _) in pairs.items():
        yield coco_arm(
            f"coco-pretrained-{key}-fpn",
            "coco-pretrained",
            f"{family} FPN + Faster R-CNN{words}, pretrained",
            full_coco(f"{family}-50 FPN{words}", config),
            starts_from=f"pretrain-cifar100-{key}",
            weights=f"pretrained/{key}50_imagenet.pth",
            counterpart_weights=f"pretrained/{'resnet' if key == 'risonet' else 'risonet'}50_imagenet.pth",
        )
