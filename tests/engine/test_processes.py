"""Several processes train as one does at the same total batch."""

from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase, launch
from detectron2.utils import comm

from iso_d2.engine import Trainer
from iso_d2.engine.setup import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "quick"
SHORT = (
    "SOLVER.EPOCHS 0 SOLVER.EPOCH_STEPS () SOLVER.WARMUP_EPOCHS 0 SOLVER.WARMUP_ITERS 0 SOLVER.STEPS () "
    "SOLVER.MAX_ITER 3 SOLVER.IMS_PER_BATCH 4 DATALOADER.NUM_WORKERS 0 SEED 5 MODEL.DEVICE cpu "
    "DATASETS.TEST () ISO.ORTHO.PERIOD 1 ISO.ORTHO.MODE exact ISO.ORTHO.COEFF 0.01"
)
UNET = (
    "MODEL.UNET.DEPTH 2 MODEL.UNET.BASE_CHANNELS 4 "
    "INPUT.ALBUMENTATIONS.TRAIN [['HorizontalFlip',{'p':0.5}]] ISO.ORTHO.PERIOD 2 ISO.ORTHO.COEFF 1.0"
)
# name -> config, KEY VALUE
TRAININGS = {
    # in memory, cut and mirrored
    "classifier": (
        "risonet20_shapes_cls.yaml",
        "MODEL.ISONET.DEPTH 8 MODEL.CLASSIFIER.DROPOUT 0.0 INPUT.CLASSIFICATION.CROP_PADDING 2",
    ),
    # each process takes a step in two parts
    "parts": ("risonet20_shapes_cls.yaml", "MODEL.ISONET.DEPTH 8 MODEL.CLASSIFIER.DROPOUT 0.0"),
    # by dataset dicts
    "unet": ("isounet_phantom.yaml", UNET),
    # its loss is of all images of a step
    "batch_dice": ("isounet_phantom.yaml", f"{UNET} MODEL.UNET.LOSS dice_bce MODEL.UNET.DICE_OVER batch"),
    # Detectron2 draws the regions at random: here it takes all, of every image as many
    "detector": (
        "risonet18_frcnn_shapes.yaml",
        "MODEL.BACKBONE.NAME build_isonet_backbone MODEL.ISONET.DEPTH 8 MODEL.ISONET.STEM cifar "
        "MODEL.ANCHOR_GENERATOR.SIZES [[16,32]] MODEL.RPN.IN_FEATURES ['res4'] "
        "MODEL.ROI_HEADS.IN_FEATURES ['res4'] MODEL.ROI_BOX_HEAD.FC_DIM 16 "
        "INPUT.ALBUMENTATIONS.TRAIN [['Resize',{'height':48,'width':64}],['HorizontalFlip',{'p':0.5}]] "
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE 1152 MODEL.RPN.POSITIVE_FRACTION 1.0 "
        "MODEL.RPN.NMS_THRESH 1.0 MODEL.RPN.PRE_NMS_TOPK_TRAIN 40 MODEL.RPN.POST_NMS_TOPK_TRAIN 40 "
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 99 MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0 "
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT False",
    ),
}


class Losses(HookBase):
    def __init__(self):
        self.values = []

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.values.append({name: value for name, (value, _) in latest.items() if "loss" in name})


def train(folder):
    """Each of the trainings; losses and weights are left in `folder`."""
    torch.set_num_threads(1)
    for name, (config, options) in TRAININGS.items():
        output = folder / name
        parts = comm.get_world_size() if name == "parts" else 1
        options = f"{SHORT} {options} OUTPUT_DIR {output} SOLVER.ACCUMULATE {parts}"
        cfg = load_config(CONFIGS / config, options.split())
        torch.manual_seed(5)
        losses = Losses()
        trainer = Trainer(cfg)
        trainer.register_hooks([losses])
        trainer.resume_or_load(resume=False)
        trainer.train()
        if comm.is_main_process():
            weights = getattr(trainer.model, "module", trainer.model).state_dict()
            torch.save({"losses": losses.values, "weights": weights}, folder / f"{name}.pth")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, forked):
    """Folders of what one process and two left."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    launch(train, 2, dist_url="auto", args=(folders[1],))
    train(folders[0])
    return folders


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one(trained, name):
    one, two = (torch.load(folder / f"{name}.pth") for folder in trained)
    assert len(one["losses"]) == 3
    for a, b in zip(one["losses"], two["losses"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    # float32 adds up in another order: the largest difference seen was 6e-8
    for key, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], weight, rtol=1e-5, atol=1e-6, msg=key)
