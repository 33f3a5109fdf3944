"""The stem that whitens the training images, in trainings of one process and of two."""

import math
import os

import engine_toys
import pytest
import torch
from detectron2.engine import SimpleTrainer, create_ddp_model, launch
from detectron2.utils import comm
from torch.nn import functional as F

from iso_d2.engine import Trainer, WhiteningHook, penalised_layers
from iso_d2.modeling import ISONet


def batches(rank=0, processes=1):
    """An endless loader of batches of four images, of which each process has a share."""
    images = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    images = (255 * F.avg_pool2d(images, 3, stride=1)).to(torch.uint8)
    while True:
        yield [{"image": image} for image in images[rank::processes]]


def tiny_net(**options):
    return ISONet(8, True, stem="cifar", out_features=["res2"], signal="scaled", **options)


def start(model, loader, iteration=0, **options):
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.0))
    trainer.register_hooks([WhiteningHook(8, **options)])
    trainer.train(iteration, iteration)


def test_the_stem_whitens_what_the_model_makes_of_the_images(log):
    model = engine_toys.ToyModel(tiny_net(whiten=True))
    others = {name: value.clone() for name, value in model.state_dict().items() if "stem.conv" not in name}
    start(model, batches())
    conv = model.backbone.stem.conv
    assert not conv.weight.requires_grad
    images = torch.stack([x["image"] for x in next(batches())]) / 255
    assert conv.gain == 1  # multiplied into the weight
    gain = math.sqrt(16 / 3)
    outputs = F.conv2d(images, conv.weight / gain).transpose(0, 1).flatten(1)
    correlation = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(correlation, correlation.diag().diag(), rtol=0, atol=1e-3)
    assert correlation.diag().min() > 0.3 and correlation.diag().max() < 1
    assert "register iso_d2.engine.WhiteningHook" not in log.text
    # nothing else has changed, and the loss of the model was never computed
    assert not any(module._forward_pre_hooks for module in model.modules())
    for name, value in others.items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_grey_images_leave_channels_of_a_named_layer_empty(log):
    """Three equal channels of 3x3 patches have 9 components for the 16 channels."""
    model = engine_toys.ToyModel(tiny_net(whiten=True))
    start(model, ([{"image": x["image"][:1].expand(3, -1, -1)} for x in batch] for batch in batches()))
    assert "7 of the 16 whitened channels of backbone.stem.conv are near 0" in log.text


def test_what_is_loaded_stays(log):
    model = engine_toys.ToyModel(tiny_net(whiten=True))
    loaded = tiny_net(whiten=False).state_dict()
    model.backbone.load_state_dict(loaded)
    start(model, batches())
    assert torch.equal(model.backbone.stem.conv.weight, loaded["stem.conv.weight"])
    assert "The stem is as it was loaded, and not trained" in log.text


def test_a_training_without_the_hook_is_warned_once(log):
    net = tiny_net(whiten=True)
    net(torch.randn(1, 3, 8, 8))
    assert "register iso_d2.engine.WhiteningHook" in log.text
    said = log.text
    net(torch.randn(1, 3, 8, 8))
    assert log.text == said
    log.clear()
    net.eval()(torch.randn(1, 3, 8, 8))
    again = tiny_net(whiten=True)
    again.load_state_dict(net.state_dict())
    again(torch.randn(1, 3, 8, 8))
    assert not log.text


def test_whitened_weights_are_no_isometry_to_the_penalty_of_a_net_that_trains_them():
    model = engine_toys.ToyModel(tiny_net(whiten=True))
    start(model, batches())
    other = engine_toys.ToyModel(tiny_net(whiten=False))
    other.load_state_dict(model.state_dict())
    assert "backbone.stem.conv" not in penalised_layers(other)
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(other.backbone(images), model.backbone(images))


def test_a_net_without_such_a_stem_is_not_touched():
    model = engine_toys.ToyModel(tiny_net(whiten=False))
    before = model.backbone.stem.conv.weight.clone()
    start(model, iter(()))  # no image is looked at
    assert torch.equal(model.backbone.stem.conv.weight, before) and before.requires_grad


class Blind(engine_toys.ToyModel):
    """A model that does without its backbone in training."""

    def forward(self, batch):
        return {}


def test_nothing_to_whiten_needs_no_loader():
    model = engine_toys.ToyModel(tiny_net(whiten=False))
    trainer = SimpleTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.0))
    del trainer.data_loader
    trainer.register_hooks([WhiteningHook()])
    trainer.train(0, 0)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one image, got 0"):
        WhiteningHook(0)
    model = engine_toys.ToyModel(tiny_net(whiten=True))
    with pytest.raises(ValueError, match="not finite, or all 0: look at the images"):
        start(model, [[{"image": torch.zeros(3, 16, 16)}]] * 9)
    with pytest.raises(ValueError, match=r"reads more than images of \(2, 16\) pixels"):
        start(model, [[{"image": torch.ones(3, 2, 16)}]])
    with pytest.raises(ValueError, match="no image reached the stem"):
        start(model, [])
    with pytest.raises(ValueError, match="no image reached the stem"):
        start(Blind(tiny_net(whiten=True)), batches())


def whiten_in_one_process(folder):
    torch.set_num_threads(1)
    model = create_ddp_model(engine_toys.ToyModel(tiny_net(whiten=True)), device_ids=None)
    start(model, batches(comm.get_rank(), 2))
    torch.save(model.module.backbone.stem.conv.weight, os.path.join(folder, f"stem{comm.get_rank()}.pth"))


def test_two_processes_get_what_one_does(tmp_path):
    launch(whiten_in_one_process, 2, dist_url="auto", args=(str(tmp_path),))
    first, second = (torch.load(tmp_path / f"stem{rank}.pth") for rank in range(2))
    assert torch.equal(first, second)
    model = engine_toys.ToyModel(tiny_net(whiten=True))
    start(model, batches())
    alone = model.backbone.stem.conv.weight
    # components have no sign
    torch.testing.assert_close(first.flatten(1).abs(), alone.flatten(1).abs(), rtol=1e-3, atol=1e-3)


def test_a_training_from_its_config(tmp_path, toy_data):
    options = [
        *("MODEL.META_ARCHITECTURE", "ImageClassifier", "MODEL.BACKBONE.NAME", "build_isonet_backbone"),
        *("MODEL.ISONET.DEPTH", 8, "MODEL.ISONET.STEM", "cifar", "MODEL.ISONET.OUT_FEATURES", ["linear"]),
        *("MODEL.ISONET.SIGNAL", "scaled", "MODEL.ISONET.WHITEN", True, "MODEL.CLASSIFIER.NUM_CLASSES", 10),
        *("DATASETS.TRAIN", ("shapes_cls_train",), "DATASETS.TEST", (), "TEST.VISUALIZE", 0),
    ]
    cfg = engine_toys.toy_config(tmp_path, *options)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    stem = trainer.model.backbone.stem.conv
    trainer.train()
    whitened = stem.weight.clone()
    norms = whitened.flatten(1).norm(dim=1)
    assert norms.max() > 3 * norms.min()  # an isometry has rows of one norm
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    again.train()
    assert torch.equal(again.model.backbone.stem.conv.weight, whitened)
