import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from torch import nn

from iso_d2.config import add_iso_config
from iso_d2.engine import OrthogonalityLossHook
from iso_d2.modeling import ImageClassifier, ISONet


class Doubling(Backbone):
    """Features: twice the first and the second channel of the images."""

    def __init__(self, name="res2"):
        super().__init__()
        self.name = name

    def forward(self, x):
        features = {"first": x, self.name: 2 * x[:, :2]}
        if self.name == "linear":
            features["linear"] = features["linear"].mean(dim=(2, 3))
        return features

    def output_shape(self):
        return {"first": ShapeSpec(channels=3, stride=1), self.name: ShapeSpec(channels=2, stride=1)}


def classifier(backbone, num_classes=2, **args):
    return ImageClassifier(
        backbone=backbone,
        num_classes=num_classes,
        pixel_mean=[10.0, 20.0, 30.0],
        pixel_std=[2.0, 4.0, 8.0],
        **args,
    )


def image(*values, size=(4, 6)):
    """An image whose channels are constant."""
    return torch.tensor(values, dtype=torch.uint8).view(3, 1, 1).expand(3, *size).contiguous()


# Normalised and doubled: (12 - 10) / 2 * 2 = 2, (28 - 20) / 4 * 2 = 4; and 2 * 1, 2 * 0.
IMAGES = [image(12, 28, 30), image(12, 20, 200)]
LOGITS = [[2.0, 4.0], [2.0, 0.0]]


def softmax(logits):
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def test_scores_in_both_forms():
    model = classifier(Doubling("linear")).eval()
    expected = torch.tensor([softmax(row) for row in LOGITS])
    batch = model({"images": torch.stack(IMAGES), "labels": torch.tensor([0, 1])})
    assert list(batch) == ["scores"]
    torch.testing.assert_close(batch["scores"], expected)
    listed = model([{"image": x, "height": 4, "width": 6} for x in IMAGES])
    torch.testing.assert_close(torch.stack([x["scores"] for x in listed]), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_in_both_forms(smoothing):
    model = classifier(Doubling("linear"), label_smoothing=smoothing).train()
    labels, expected = [1, 1], 0.0
    for row, label in zip(LOGITS, labels, strict=True):
        for c, p in enumerate(softmax(row)):
            expected -= ((1 - smoothing) * (c == label) + smoothing / 2) * math.log(p) / 2
    batch = model({"images": torch.stack(IMAGES), "labels": torch.tensor(labels)})
    listed = model([{"image": x, "label": label} for x, label in zip(IMAGES, labels, strict=True)])
    assert list(batch) == list(listed) == ["loss_cls"]
    assert batch["loss_cls"].item() == pytest.approx(expected, rel=1e-5)
    assert listed["loss_cls"].item() == pytest.approx(expected, rel=1e-5)


def test_own_linear_layer_on_the_last_feature():
    model = classifier(Doubling(), num_classes=3).eval()
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        model.linear.bias.copy_(torch.tensor([0.0, 0.0, -3.0]))
    # Pixels that differ: the pooled features are the mean of 2 and 4 (first channel), 0 (second).
    halves = torch.cat([image(12, 20, 0), image(14, 20, 0)], dim=2)
    scores = model([{"image": halves}])[0]["scores"]
    torch.testing.assert_close(scores, torch.tensor(softmax([3.0, 0.0, 0.0])))


def test_dropout_acts_in_training_only():
    model = classifier(Doubling(), dropout=1.0)
    batch = {"images": torch.stack(IMAGES), "labels": torch.tensor([0, 1])}
    with torch.no_grad():
        model.linear.bias.zero_()
        # All features dropped: logits are 0, the loss that of a guess
        assert model.train()(batch)["loss_cls"].item() == pytest.approx(math.log(2))
        assert (model.eval()(batch)["scores"] != 0.5).all()


def test_mixed_precision_scores_are_float32():
    model = classifier(ISONet(8, True, stem="cifar", num_classes=2)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        scores = model({"images": torch.stack(IMAGES)})["scores"]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("is_batch", [False, True])
def test_label_out_of_range(label, is_batch):
    model = classifier(Doubling("linear")).train()
    inputs = [{"image": x, "label": y} for x, y in zip(IMAGES, [0, label], strict=True)]
    if is_batch:
        inputs = {"images": torch.stack(IMAGES), "labels": torch.tensor([0, label])}
    with pytest.raises(
        ValueError, match=rf"must be 0 to 1 \(MODEL\.CLASSIFIER\.NUM_CLASSES 2\), got {label}"
    ):
        model(inputs)


def test_missing_label():
    model = classifier(Doubling("linear")).train()
    with pytest.raises(KeyError, match="needs 'label' in training, got only 'image', 'file_name'"):
        model([{"image": IMAGES[0], "label": 0}, {"image": IMAGES[1], "file_name": "a.png"}])
    with pytest.raises(KeyError, match="needs 'labels' in training, got only 'images'"):
        model({"images": torch.stack(IMAGES)})


def test_images_of_several_sizes():
    model = classifier(Doubling("linear")).eval()
    with pytest.raises(
        ValueError, match=r"one size in a batch, got 'image' of \(3, 4, 6\), \(3, 4, 8\): resize or crop"
    ):
        model([{"image": IMAGES[0]}, {"image": image(1, 2, 3, size=(4, 8))}])


def test_linear_of_another_width():
    with pytest.raises(ValueError, match=r"has 10 classes \(MODEL\.CLASSIFIER\.NUM_CLASSES\), .* layer 2"):
        classifier(Doubling("linear"), num_classes=10)


def config(backbone, **keys):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 5
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.25
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.1
    cfg.merge_from_list([x for item in keys.items() for x in (item[0].replace("__", "."), item[1])])
    return cfg


@pytest.mark.parametrize(
    "backbone, keys, owns_linear",
    [
        ("build_isonet_backbone", {"MODEL__ISONET__OUT_FEATURES": ["linear"]}, False),
        ("build_isonet_backbone", {"MODEL__ISONET__OUT_FEATURES": ["res2", "res4"]}, True),
        ("build_cifar_resnet_backbone", {"MODEL__RESNETS__NORM": "BN"}, True),
        ("build_isonet_fpn_backbone", {"MODEL__ISONET__DEPTH": 18, "MODEL__ISONET__STEM": "imagenet"}, True),
    ],
)
def test_over_registered_backbones(backbone, keys, owns_linear):
    defaults = {
        "MODEL__ISONET__DEPTH": 8,
        "MODEL__ISONET__STEM": "cifar",
        "MODEL__RESNETS__DEPTH": 8,
        "MODEL__RESNETS__OUT_FEATURES": ["res4"],
    }
    model = build_model(config(backbone, **{**defaults, **keys}))
    assert any(name == "linear" for name, _ in model.named_children()) == owns_linear
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]
    assert model.label_smoothing == 0.1
    batch = {"images": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), "labels": torch.tensor([0, 4])}
    loss = model.train()(batch)["loss_cls"]
    loss.backward()
    assert torch.isfinite(loss)
    assert model.eval()(batch)["scores"].shape == (2, 5)


def test_orthogonality_hook_as_it_is():
    backbone = ISONet(8, True, stem="cifar", num_classes=2)
    model = classifier(backbone).train()
    with torch.no_grad():
        backbone.res2[0].branch.conv1.weight.mul_(2)
    batch = {"images": torch.stack(IMAGES), "labels": torch.tensor([0, 1])}
    trainer = SimpleTrainer(model, [batch], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([OrthogonalityLossHook(0.5)])
    losses = []
    handle = model.register_forward_hook(lambda model, _, output: losses.append(output))
    trainer.train(0, 1)
    handle.remove()
    # One 16-channel delta kernel, doubled: its Gram is 4 on the diagonal, gamma / 2 * 16 * (4 - 1)^2
    assert set(losses[0]) == {"loss_cls"}
    assert trainer.storage.latest()["loss_ortho"][0] == pytest.approx(0.5 / 2 * 16 * 9, rel=1e-5)
