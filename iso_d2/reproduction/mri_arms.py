"""Brain MRI: ISO-UNet and UNets (report, Sections 5.1 and 6.1), on both splits."""

from .arm import ONLY_FULL, SMALL_COMMON, Arm, Run, options

# Length in small
MRI_EPOCHS = 3
UNETS = {
    "isounet": ("ISO-UNet", "isounet", 0.24),
    "unet-bn": ("UNet, batch norm", "unet", 0.28),
    "unet-relu": ("UNet, ReLU, no norm", "unet_nonorm", 0.23),
}


def mri_arms(split, *keys):
    """Some of UNETS, on a split of the slices (DATASETS.LGG_SPLIT)."""
    return [_mri_arm(split, *UNETS[key], key) for key in keys]


def _mri_arm(split, label, config, seconds, key):
    split_option = options(DATASETS__LGG_SPLIT=split)
    # The report halves the rate after epochs 5, 15, 25, 35 and 45 of 50: the same points of fewer.
    steps = tuple(round(epoch / 50 * MRI_EPOCHS, 2) for epoch in (5, 15, 25, 35, 45))
    small = Run(
        net=label,
        config=f"configs/quick/{config}_narrow_lgg.yaml",
        options=(
            *split_option,
            *options(
                SOLVER__IMS_PER_BATCH=8,
                SOLVER__EPOCHS=MRI_EPOCHS,
                SOLVER__EPOCH_STEPS=str(steps),
                SOLVER__CHECKPOINT_PERIOD=100,
                TEST__EVAL_EPOCHS=1,
                DATASETS__TEST="('lgg_val',)",
            ),
            *SMALL_COMMON,
        ),
        setup=f"8 to 128 channels, 112x112, {MRI_EPOCHS} epochs of batch 8, Dice and cross entropy, "
        "rate halved at the report's points of the schedule",
        seconds=seconds,
        evaluate="lgg_train",
    )
    full = Run(
        net=label,
        config=f"configs/{config}_lgg.yaml",
        options=(*split_option, *options(SOLVER__CHECKPOINT_PERIOD=500)),
        setup="64 to 1024 channels, 224x224, 50 epochs of batch 20, Dice, rate halved after 5, 15, ... 45",
    )
    return Arm(
        name=f"mri-{split}-{key}",
        group="mri",
        table=f"mri-{split}",
        label=label,
        needs=("lgg",),
        full=full,
        small=small if split == "patient" else ONLY_FULL,
    )
