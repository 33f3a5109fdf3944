"""CIFAR-10 and CIFAR-100: the report's eight runs (Section 3.1), ResNets beside them, and the ablation."""

from .arm import CPU_COMMON, LEFT_OUT, ONLY_SMALL, Arm, Run, options

# Lengths on a CPU
CIFAR_EPOCHS = {"medium": 5, "small": 2}
ABLATION_EPOCHS = 1
CIFAR_TRAIN_IMAGES, CIFAR_BATCH = 50_000, 128
CIFAR_EPOCH = round(CIFAR_TRAIN_IMAGES / CIFAR_BATCH)  # iterations
# In the names of configs -> in words
ISONETS = {"risonet": "R-ISONet", "isonet": "ISONet"}
# On a CPU: the narrow nets of depth 20. Backbones of (R-)ISONet and ResNet read different keys.
NARROW = {
    "isonet18": options(MODEL__ISONET__DEPTH=20),
    "resnet18": options(MODEL__RESNETS__DEPTH=20, MODEL__RESNETS__OUT_FEATURES="['res4']"),
}


def short_cifar(net, config, epochs, *changes, train_set=True):
    """Depth 20 for a few epochs: half an epoch of warm-up, a tenth of the rate in the last third."""
    total = epochs * CIFAR_EPOCH
    family = "resnet18" if "resnet18" in config else "isonet18"
    schedule = options(
        SOLVER__EPOCHS=0,
        SOLVER__EPOCH_STEPS="()",
        SOLVER__WARMUP_EPOCHS=0,
        TEST__EVAL_EPOCHS=0,
        SOLVER__MAX_ITER=total,
        SOLVER__STEPS=f"({round(total * 2 / 3)},)",
        SOLVER__WARMUP_ITERS=CIFAR_EPOCH // 2,
        TEST__EVAL_PERIOD=CIFAR_EPOCH,
        SOLVER__CHECKPOINT_PERIOD=100,
        DATASETS__TEST="('cifar10_test',)",
    )
    epochs_text = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    return Run(
        net=net,
        config=config,
        options=(*NARROW[family], *schedule, *options(MODEL__CHANNELS_LAST=True), *CPU_COMMON, *changes),
        setup=f"depth 20 (16, 32, 64 wide), {epochs_text} of batch {CIFAR_BATCH}, half an epoch of warm-up, "
        "rate x0.1 in the last third, flip",
        seconds=0.4,
        evaluate="cifar10_train" if train_set else "",
    )


def short_runs(net, config):
    """dict: the runs of an arm on a CPU, by scale."""
    return {scale: short_cifar(net, config, epochs) for scale, epochs in CIFAR_EPOCHS.items()}


def full_cifar(net, config, *changes):
    return Run(
        net=net,
        config=config,
        options=(*options(SOLVER__CHECKPOINT_PERIOD=2000), *changes),
        setup="depth 18 (64 to 512 wide, 3x3 stem), 100 epochs of batch 128, rate x0.1 at 30, 60, 90, flip",
    )


def cifar_arm(number, key, label, net, config, short=None):
    """An arm on CIFAR-`number`: `net` at full scale, `short` (a net's name) on a CPU, if there is one."""
    return Arm(
        name=f"cifar{number}-{key}",
        group="cifar",
        table=f"cifar{number}",
        label=label,
        needs=(f"cifar{number}",),
        full=full_cifar(net, config),
        **(short_runs(short, config) if short else LEFT_OUT),
    )


def isonet_arms(number, gamma):
    """R-ISONet and ISONet on CIFAR-`number`, with the penalty's weight as text."""
    for net, family in ISONETS.items():
        config = f"configs/cifar/{net}18_cifar{number}{'' if gamma == '1e-4' else f'_gamma{gamma}'}.yaml"
        short = f"{family}-20" if number == 10 and gamma == "1e-4" else None
        label = f"{family}, gamma {gamma}"
        yield cifar_arm(number, f"{net}-gamma{gamma}", label, f"{family}-18", config, short)


def crop_arms(number):
    """R-ISONet and ISONet with the padded crop of the paper's code, which the report does not mention."""
    for net, family in ISONETS.items():
        config = f"configs/cifar/{net}18_cifar{number}_crop.yaml"
        label = f"{family}, gamma 1e-4, padded crop"
        yield cifar_arm(number, f"{net}-crop", label, f"{family}-18, padded crop", config)


def resnet_arms(number):
    """ResNets on CIFAR-`number` with batch norm, and with ReLU alone."""
    for norm, words, suffix in (("bn", "batch norm", ""), ("nonorm", "ReLU, no norm", "_nonorm")):
        config = f"configs/cifar/resnet18{suffix}_cifar{number}.yaml"
        short = f"ResNet-20, {words}" if number == 10 else None
        yield cifar_arm(number, f"resnet-{norm}", f"ResNet, {words}", f"ResNet-18, {words}", config, short)


# The parts of R-ISONet, each taken away alone. max(x, 0) with 0 fixed is ReLU.
ABLATIONS = {
    "none": ("R-ISONet, all parts", ()),
    "no-delta": ("without delta initialisation (Kaiming normal)", options(MODEL__ISONET__DELTA_INIT=False)),
    "no-srelu": (
        "without SReLU (ReLU)",
        options(MODEL__ISONET__SRELU_INIT=0.0, MODEL__ISONET__SRELU_LEARNABLE=False),
    ),
    "no-penalty": ("without the orthogonality penalty", options(ISO__ORTHO__COEFF=0.0)),
    "no-scale": (
        "without the residual scale (fixed at 1)",
        options(MODEL__ISONET__SCALE_INIT=1.0, SOLVER__SCALE_LR_FACTOR=0.0),
    ),
}
RISONET_CIFAR10 = "configs/cifar/risonet18_cifar10.yaml"
# At full scale the ablation has this arm to compare with.
WHOLE = "cifar10-risonet-gamma1e-4"


def ablation_arms():
    """R-ISONet on CIFAR-10, whole and without each of its parts."""
    for key, (words, changes) in ABLATIONS.items():
        full = full_cifar("R-ISONet-18", RISONET_CIFAR10, *changes)
        yield Arm(
            name=f"cifar10-ablation-{key}",
            group="cifar",
            table="ablation",
            label=words,
            needs=("cifar10",),
            full=full if changes else f"the same as {WHOLE}",
            medium=ONLY_SMALL,
            small=short_cifar("R-ISONet-20", RISONET_CIFAR10, ABLATION_EPOCHS, *changes, train_set=False),
            same_as="" if changes else WHOLE,
        )
