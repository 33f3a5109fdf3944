"""Brain MRI: ISO-UNet and UNets (report, Sections 5.1 and 6.1), on both splits."""

from .arm import CPU_COMMON, LEFT_OUT, Arm, Run, options

# Lengths on a CPU
MRI_EPOCHS = {"medium": 10, "small": 4}
# Key -> label, config, seconds of an iteration on a CPU, changes
UNETS = {
    "isounet": ("ISO-UNet", "isounet", 0.19, ()),
    "isounet-delta": ("ISO-UNet, all kernels delta", "isounet", 0.19, options(MODEL__UNET__INIT="delta")),
    "unet-bn": ("UNet, batch norm", "unet", 0.2, ()),
    "unet-relu": ("UNet, ReLU, no norm", "unet_nonorm", 0.18, ()),
}


def mri_arms(split, *keys):
    """Some of UNETS, on a split of the slices (DATASETS.LGG_SPLIT)."""
    return [_mri_arm(split, *UNETS[key], key) for key in keys]


def _mri_arm(split, label, config, seconds, changes, key):
    split_option = options(DATASETS__LGG_SPLIT=split)
    full = Run(
        net=label,
        config=f"configs/{config}_lgg.yaml",
        options=(*split_option, *options(SOLVER__CHECKPOINT_PERIOD=500), *changes),
        setup="64 to 1024 channels, 224x224, 50 epochs of batch 20, Dice, rate halved after 5, 15, ... 45",
    )
    short = {
        scale: short_mri(label, config, split_option, epochs, seconds) for scale, epochs in MRI_EPOCHS.items()
    }
    return Arm(
        name=f"mri-{split}-{key}",
        group="mri",
        table=f"mri-{split}",
        label=label,
        needs=("lgg",),
        full=full,
        **(short if split == "patient" else LEFT_OUT),
    )


def short_mri(label, config, split_option, epochs, seconds, *changes, train_set=True):
    """8 to 128 channels for a few epochs of batch 8."""
    # The report halves the rate after epochs 5, 15, 25, 35 and 45 of 50: the same points of fewer.
    steps = tuple(round(epoch / 50 * epochs, 2) for epoch in (5, 15, 25, 35, 45))
    return Run(
        net=label,
        config=f"configs/quick/{config}_narrow_lgg.yaml",
        options=(
            *split_option,
            *options(
                SOLVER__IMS_PER_BATCH=8,
                SOLVER__EPOCHS=epochs,
                SOLVER__EPOCH_STEPS=str(steps),
                SOLVER__CHECKPOINT_PERIOD=100,
                TEST__EVAL_EPOCHS=1,
                DATASETS__TEST="('lgg_val',)",
                MODEL__CHANNELS_LAST=True,
            ),
            *CPU_COMMON,
            *changes,
        ),
        setup=f"8 to 128 channels, 112x112, {epochs} epochs of batch 8, Dice and cross entropy, "
        "rate halved at the report's points of the schedule",
        seconds=seconds,
        evaluate="lgg_train" if train_set else "",
    )
