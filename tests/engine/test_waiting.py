"""Training steps do not wait for the GPU, except to write the losses; on a pretended GPU."""

import engine_toys
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances
from pretended_gpu import pretended_gpu
from torch import nn

from iso_d2.engine import OrthogonalityLossHook, Trainer, build_optimizer
from iso_d2.engine.mixed_precision import inner_trainer
from iso_d2.engine.setup import load_config

ISONET = [
    *("MODEL.BACKBONE.NAME", "build_isonet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.ISONET.DEPTH", 8, "MODEL.ISONET.STEM", "cifar", "MODEL.ISONET.SIGNAL", "scaled"),
    *("MODEL.ISONET.WHITEN", False),
]
MODELS = {
    "ImageClassifier": [
        *ISONET,
        *("MODEL.ISONET.OUT_FEATURES", ["linear"], "MODEL.CLASSIFIER.NUM_CLASSES", 3),
    ],
    "UNetSegmentor": ["MODEL.UNET.BASE_CHANNELS", 4, "MODEL.UNET.DEPTH", 2, "MODEL.UNET.LOSS", "dice_bce"],
    "GeneralizedRCNN": [
        *ISONET,
        *("MODEL.ISONET.OUT_FEATURES", ["res4"], "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 2),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 2),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16]], "MODEL.PIXEL_STD", [58.4, 57.1, 57.4]),
    ],
}


def record(kind, number):
    """A training image as the mapper gives it, on the CPU."""
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8)
    if kind == "ImageClassifier":
        return {"image": image, "label": number}
    if kind == "UNetSegmentor":
        return {"image": image, "sem_seg": (image[0] > 128).to(torch.int64)}
    instances = Instances((32, 32))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 20.0, 20.0]]))
    instances.gt_classes = torch.tensor([0])
    return {"image": image, "instances": instances, "height": 32, "width": 32}


def loader(kind, whole):
    """Endless batches of two images, whole ones on the GPU."""
    batch = [record(kind, number) for number in range(2)]
    if whole:
        key = "label" if kind == "ImageClassifier" else "sem_seg"
        labels = torch.stack([torch.as_tensor(x[key]) for x in batch])
        batch = {"images": torch.stack([x["image"] for x in batch]).cuda(), "labels": labels.cuda()}
    while True:
        yield batch


class ForgetTheFirstStep(HookBase):
    """It may wait: the penalty makes its tables, Detectron2 its anchors."""

    def __init__(self, waits):
        self.waits = waits

    def after_step(self):
        if self.trainer.iter == 0:
            self.waits.clear()


CASES = [(kind, False) for kind in MODELS] + [("ImageClassifier", True), ("UNetSegmentor", True)]


@pytest.mark.parametrize("precision", [None, "bf16", "fp16"])
@pytest.mark.parametrize("kind, whole", CASES)
def test_nothing_of_ours_waits_in_a_training_step(kind, whole, precision):
    with pretended_gpu() as waits:
        cfg = load_config(opts=["MODEL.META_ARCHITECTURE", kind, "MODEL.DEVICE", "cuda", *MODELS[kind]])
        cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION = precision is not None, precision or "fp16"
        clipping = cfg.SOLVER.CLIP_GRADIENTS
        clipping.ENABLED, clipping.CLIP_TYPE, clipping.ADAPTIVE = True, "norm", 0.1
        model = Trainer.build_model(cfg)
        optimizer = build_optimizer(cfg, model)
        trainer = inner_trainer(cfg)(model, loader(kind, whole), optimizer)
        trainer.register_hooks([OrthogonalityLossHook(1e-3, log_period=0), ForgetTheFirstStep(waits)])
        trainer.train(0, 2)
        assert next(model.parameters()).device.type == "cuda"
        assert any("write_metrics" in wait or "metrics_dict" in wait for wait in waits)  # Detectron2's own
        # The penalty keeps its tables for plain tensors alone; for the pretended ones it always makes them.
        # A built-in backward pass waits for what the forward pass indexed by a mask, which is told by itself.
        left_out = ("isometry/_tables.py", ".backward()")
        ours = [x for x in waits if "iso_d2/" in x and not any(known in x for known in left_out)]
        assert ours == []


@pytest.mark.parametrize(
    "act, waits_for",
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.cpu(), "a blocking copy"),
        (lambda x: torch.ones(2).to("cuda"), "a blocking copy"),
        (lambda x: torch.tensor([1.0], device="cuda"), "a blocking copy"),
        (lambda x: torch.ones(2).cuda(non_blocking=True) + x, None),
        (lambda x: nn.functional.cross_entropy(x[None], torch.zeros_like(x[:1], dtype=torch.int64)), None),
    ],
)
def test_what_waits(act, waits_for):
    with pretended_gpu() as waits:
        x = torch.zeros(2, device="cuda")
        waits.clear()
        act(x)
        assert [wait.split(" at ")[0] for wait in waits] == ([waits_for] if waits_for else [])
        with pytest.raises(AssertionError, match="on the CPU and on the GPU"):
            x + torch.ones(2)


def test_a_model_is_trained_there_as_on_the_cpu():
    trained = []
    for device in ("cpu", "cuda"):
        with pretended_gpu():
            model = engine_toys.toy_with_random_weights().to(device)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2):
                optimizer.zero_grad()
                model(next(engine_toys.toy_batches()))["loss_toy"].backward()
                optimizer.step()
            assert {p.device.type for p in model.parameters()} == {device}
            trained.append([p.detach().cpu() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))
