import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from iso_d2.config import add_iso_config
from iso_d2.modeling import SegmentorEnsemble, UNet, UNetSegmentor
from iso_d2.placement import Placement


class Channels(nn.Module):
    """In the place of the UNet: the logits are the standardised channels themselves."""

    def __init__(self, channels=1):
        super().__init__()
        self.in_channels = self.num_classes = channels

    def forward(self, images):
        return images


class Steps(nn.Module):
    """The logits are so far apart that the probabilities are 0 or 1: above or below the mean."""

    in_channels = num_classes = 1

    def forward(self, images):
        return 100 * images


def segmentor(channels=1, **args):
    return UNetSegmentor(unet=Channels(channels), **args)


def batch(images, labels):
    return {"images": torch.tensor(images, dtype=torch.uint8), "labels": torch.tensor(labels)}


def as_list(batch):
    return [
        {"image": image, "sem_seg": labels}
        for image, labels in zip(batch["images"], batch["labels"], strict=True)
    ]


def sigmoid(x):
    return torch.tensor(x, dtype=torch.float32).sigmoid()


def test_each_channel_of_each_image_is_standardised_by_itself():
    model = segmentor(2, loss="cross_entropy").eval()
    # means 2, 7, 4, 20 and standard deviations 2, 0 (floored at 1), 4, 0.5 (floored at 1)
    images = [[[[0, 4]], [[7, 7]]], [[[8, 0]], [[20, 21]]]]
    out = model.unet
    seen = []
    out.register_forward_hook(lambda m, i, o: seen.append(o))
    model({"images": torch.tensor(images, dtype=torch.uint8)})
    torch.testing.assert_close(
        seen[0], torch.tensor([[[[-1.0, 1.0]], [[0.0, 0.0]]], [[[1.0, -1.0]], [[-0.5, 0.5]]]])
    )


def test_standardised_by_the_data_set():
    model = segmentor(standardize="dataset", pixel_mean=[10.0], pixel_std=[5.0]).eval()
    probabilities = model({"images": torch.tensor([[[[10, 20]]]], dtype=torch.uint8)})["probabilities"]
    torch.testing.assert_close(probabilities, sigmoid([[[[0.0, 2.0]]]]))


def test_loss_in_both_forms():
    # standardised: -1, -1, 1, 1; then the report's Dice loss with eps, by hand
    inputs = batch([[[[0, 0], [4, 4]]]], [[[0, 0], [0, 1]]])
    low, high = sigmoid(-1.0).item(), sigmoid(1.0).item()
    expected = 1 - (2 * high + 1) / (2 * low**2 + 2 * high**2 + 1 + 1)
    model = segmentor().train()
    for form in (inputs, as_list(inputs)):
        losses = model(form)
        assert list(losses) == ["loss_dice"]
        assert losses["loss_dice"].item() == pytest.approx(expected, rel=1e-6)
    expected = 1 - (2 * high + 3) / (2 * low**2 + 2 * high**2 + 1 + 3)
    assert segmentor(dice_smooth=3.0)(inputs)["loss_dice"].item() == pytest.approx(expected, rel=1e-6)
    assert list(segmentor(loss="dice_bce")(inputs)) == ["loss_dice", "loss_bce"]


def test_inference_without_placement_is_resized_to_the_original():
    model = UNetSegmentor(unet=Steps()).eval()
    image = torch.tensor([[[0, 4], [0, 4]]], dtype=torch.uint8)
    (same, wider) = model([{"image": image}, {"image": image, "height": 3, "width": 4}])
    probabilities = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    for out in (same, wider):
        torch.testing.assert_close(out["probabilities"], probabilities)
        assert out["sem_seg"].dtype == torch.float32
    torch.testing.assert_close(same["sem_seg"], probabilities)
    # twice as wide, bilinear: the new pixel centres lie at -1/4, 1/4, 3/4, 5/4
    row = [0.0, 0.25, 0.75, 1.0]
    torch.testing.assert_close(wider["sem_seg"], torch.tensor([[row, row, row]]))


def test_inference_goes_back_through_the_placement():
    # An original of 5 x 6, of which the box of 2 x 4 at row 2, column 1 lay in the middle of a square of 4.
    placement = Placement(top=2, left=1, height=2, width=4)
    model = UNetSegmentor(unet=Steps()).eval()
    image = torch.tensor([[[0, 4], [4, 0]]], dtype=torch.uint8)
    (out,) = model([{"image": image, "height": 5, "width": 6, "placement": placement}])
    expected = torch.zeros(1, 5, 6)
    # along each axis from 0 to 1 in the steps 0, 1/4, 3/4, 1, of which the box has the two rows in the middle
    expected[0, 2:4, 1:5] = torch.tensor([[0.25, 0.375, 0.625, 0.75], [0.75, 0.625, 0.375, 0.25]])
    torch.testing.assert_close(out["sem_seg"], expected)
    torch.testing.assert_close(out["probabilities"], torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))


def test_softmax_sums_to_one_on_both_grids():
    model = segmentor(3, loss="cross_entropy").eval()
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    (out,) = model([{"image": image, "height": 9, "width": 4}])
    assert out["probabilities"].shape == (3, 5, 7)
    assert out["sem_seg"].shape == (3, 9, 4)
    for probabilities in out.values():
        torch.testing.assert_close(probabilities.sum(0), torch.ones(probabilities.shape[1:]))


def test_inference_of_several_sizes():
    model = UNetSegmentor(unet=UNet(base_channels=4, depth=3)).eval()
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in [(16, 16), (9, 20)]]
    with torch.no_grad():
        together = model([{"image": image} for image in images])
        for image, out in zip(images, together, strict=True):
            (alone,) = model([{"image": image}])
            torch.testing.assert_close(out["probabilities"], alone["probabilities"])
            assert out["probabilities"].shape == (1, *image.shape[1:])


@pytest.mark.parametrize(
    "channels, label, message",
    [
        (1, 255, r"0 or 1 \(MODEL.UNET.NUM_CLASSES 1\), got 255: masks of 0/255 must become 0/1"),
        (1, 2, "got 2"),
        (1, -1, "got -1"),
        (3, 3, r"0 to 2, or 255 to be ignored \(MODEL.UNET.NUM_CLASSES 3\), got 3"),
        (3, 254, "got 254"),
    ],
)
def test_labels_out_of_range(channels, label, message):
    model = segmentor(channels).train()
    inputs = batch([[[[0, 4]]] * channels], [[[0, label]]])
    for form in (inputs, as_list(inputs)):
        with pytest.raises(ValueError, match=message):
            model(form)


def test_255_is_ignored_among_classes_and_suspicious_alone(log):
    model = segmentor(2, loss="cross_entropy").train()
    with log.at_level(logging.WARNING):
        assert model(batch([[[[0, 4]]] * 2], [[[1, 255]]]))["loss_cross_entropy"].isfinite()
        assert "255" not in log.text
        assert model(batch([[[[0, 4]]] * 2], [[[0, 255]]]))["loss_cross_entropy"].isfinite()
    assert "If 255 means the foreground" in log.text


def test_inputs_that_do_not_fit():
    model = segmentor().train()
    image, labels = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int64)
    with pytest.raises(KeyError, match="needs 'sem_seg' in training, got only 'image', 'height'"):
        model([{"image": image, "height": 4}])
    with pytest.raises(KeyError, match="needs 'labels' in training, got only 'images'"):
        model({"images": image[None]})
    with pytest.raises(ValueError, match=r"one size in a batch, got 'image' of \(1, 4, 4\), \(1, 4, 5\)"):
        model([{"image": image, "sem_seg": labels}, {"image": torch.zeros(1, 4, 5), "sem_seg": labels}])
    with pytest.raises(ValueError, match=r"labels of shape \(1, 3, 4\) for images of \(1, 1, 4, 4\)"):
        model([{"image": image, "sem_seg": labels[:3]}])
    with pytest.raises(ValueError, match=r"images of 1 channels \(MODEL.UNET.IN_CHANNELS\), got 3"):
        model([{"image": image.expand(3, 4, 4), "sem_seg": labels}])


@pytest.mark.parametrize(
    "args, message",
    [
        ({"dice_over": "images"}, "DICE_OVER must be one of image, batch, got 'images'"),
        ({"standardize": "batch"}, "STANDARDIZE must be 'image' or 'dataset', got 'batch'"),
        ({"standardize": "dataset", "pixel_mean": [1.0]}, "a value for each of the 1 channels"),
        ({"loss": "cross_entropy"}, "NUM_CLASSES to 2 or more"),
    ],
)
def test_bad_options(args, message):
    with pytest.raises(ValueError, match=message):
        segmentor(**args)


def config(*opts):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "UNetSegmentor", "MODEL.DEVICE", "cpu", *opts])
    cfg.merge_from_list(["MODEL.UNET.BASE_CHANNELS", 4, "MODEL.UNET.DEPTH", 3])
    return cfg


def test_every_key_arrives():
    model = build_model(config())
    assert (model.loss, model.dice_smooth, model.dice_over, model.standardize) == (
        "dice",
        1.0,
        "image",
        "image",
    )
    assert model.unet.ups[0].kernel_size == (2, 2)
    assert model.unet.encoder[0].act1.threshold.tolist() == [-1.0] * 4
    assert not model.unet.encoder[0].act1.threshold.requires_grad
    assert not (model.unet.ups[0].weight == 1).any()

    options = dict(INIT="delta", IN_CHANNELS=2, NUM_CLASSES=3, UP_KERNEL=6, SRELU_INIT=-2.0)
    options.update(SRELU_LEARNABLE=True, LOSS="iou", DICE_SMOOTH=0.5, DICE_OVER="batch")
    model = build_model(config(*[x for key, value in options.items() for x in (f"MODEL.UNET.{key}", value)]))
    assert (model.loss, model.dice_smooth, model.dice_over) == ("iou", 0.5, "batch")
    assert (model.unet.in_channels, model.unet.num_classes, len(model.unet.encoder)) == (2, 3, 3)
    assert model.unet.ups[0].weight.sum() == 8  # a delta of 8 outputs
    assert model.unet.ups[0].kernel_size == (6, 6)
    assert model.unet.encoder[0].act1.threshold.tolist() == [-2.0] * 4
    assert model.unet.encoder[0].act1.threshold.requires_grad

    baseline = ["MODEL.UNET.ISOMETRIC", False, "MODEL.UNET.NORM", "BN", "MODEL.UNET.UP", "nearest"]
    dataset = ["MODEL.UNET.STANDARDIZE", "dataset", "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]]
    model = build_model(config(*baseline, *dataset))
    assert [name for name, _ in model.unet.encoder[0].named_children()][:3] == ["conv1", "norm1", "act1"]
    assert hasattr(model.unet.ups[0], "repeat")
    assert model.pixel_mean.flatten().tolist() == [1.0, 2.0, 3.0]


class Corner(nn.Module):
    """The logit of the uppermost left pixel is the image's channel there, all others are 0."""

    in_channels = num_classes = 1

    def forward(self, images):
        logits = torch.zeros_like(images)
        logits[..., 0, 0] = images[..., 0, 0]
        return logits


@pytest.mark.parametrize("axes", [(), ("width",), ("height",), ("height", "width")])
def test_mirrored_images_are_averaged(axes):
    image = torch.tensor([[[0, 1, 8], [2, 3, 4]]], dtype=torch.uint8)
    model = UNetSegmentor(unet=Corner(), mirror_axes=axes).eval()
    standardised = (image.double() - 3) / image.double().std(correction=0)
    # with an axis the corner of each mirror image is another corner of the image
    corners = {(r, c) for r in {0, -1 if "height" in axes else 0} for c in {0, -1 if "width" in axes else 0}}
    expected = torch.full((2, 3), 0.5, dtype=torch.float64)
    for corner in corners:
        expected[corner] += (standardised[0][corner].sigmoid() - 0.5) / len(corners)
    assert len(corners) == 2 ** len(axes)
    (out,) = model([{"image": image, "height": 2, "width": 3}])
    for found in (out["probabilities"][0], out["sem_seg"][0]):
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(model({"images": image[None]})["probabilities"][0], out["probabilities"])


def test_the_ensemble_is_the_mean():
    models = [segmentor(2, loss="cross_entropy"), build_model(config("MODEL.UNET.IN_CHANNELS", 2))]
    models[1].unet.output = nn.Conv2d(4, 2, 1)
    ensemble = SegmentorEnsemble(models)
    assert not any(module.training for module in ensemble.modules())
    image = torch.randint(256, (2, 8, 12), dtype=torch.uint8)
    each = [model([{"image": image}])[0]["probabilities"] for model in models]
    (found,) = ensemble([{"image": image, "height": 4, "width": 6}])
    torch.testing.assert_close(found["probabilities"], (each[0] + each[1]) / 2)
    assert found["sem_seg"].shape == (2, 4, 6)
    assert (each[0] - each[1]).abs().max() > 0.01


def test_axes_of_the_mirror_are_checked():
    for axes in (["depth"], ["width", "width"]):
        with pytest.raises(
            ValueError, match=r"TEST\.MIRROR_AXES must hold each of height, width at most once"
        ):
            build_model(config("TEST.MIRROR_AXES", axes))
    assert build_model(config("TEST.MIRROR_AXES", ["width"])).mirrorings == [(-1,)]
