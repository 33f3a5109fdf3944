import numpy as np
import pytest
import torch

from iso_d2.modeling.segmentation_losses import class_probabilities, segmentation_losses


def sample(num_classes=1, ignore=False, dtype=torch.float64):
    """Logits and labels of 4 images of 5 x 6 pixels, the first of them without foreground."""
    torch.manual_seed(0)
    logits = torch.randn(4, num_classes, 5, 6, dtype=dtype)
    labels = torch.randint(max(num_classes, 2), (4, 5, 6))
    labels[0] = 0
    if ignore:
        labels[:, 1:3, 2:5] = 255
    return logits, labels


def of_batch(formula, p, q):
    """The mean of a formula over all classes, each of which has the pixels of all images."""
    return np.mean([formula(p[:, k].ravel(), q[:, k].ravel()) for k in range(p.shape[1])])


def per_instance(formula, p, q):
    """The mean of a formula over all images and classes, in plain numpy."""
    return np.mean([formula(p[at].ravel(), q[at].ravel()) for at in np.ndindex(p.shape[:2])])


def dice(eps):
    return lambda p, q: 1 - (2 * (p @ q) + eps) / (p @ p + q @ q + eps)


def iou(eps):
    return lambda p, q: 1 - (p @ q + eps) / ((p + q - p * q).sum() + eps)


def foreground(logits, labels):
    """P and Q in numpy: the foreground classes one by one, ignored pixels out of both."""
    z, y = logits.numpy(), labels.numpy()
    if z.shape[1] == 1:
        return 1 / (1 + np.exp(-z)), (y == 1)[:, None].astype(float)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    q = np.stack([y == k for k in range(1, z.shape[1])], 1).astype(float)
    return p[:, 1:] * (y != 255)[:, None], q


@pytest.mark.parametrize("smooth", [1.0, 0.1])
@pytest.mark.parametrize("num_classes, ignore", [(1, False), (2, True), (4, True)])
@pytest.mark.parametrize("name, formula", [("dice", dice), ("iou", iou)])
@pytest.mark.parametrize("over, mean", [("image", per_instance), ("batch", of_batch)])
def test_dice_and_iou(name, formula, over, mean, num_classes, ignore, smooth):
    logits, labels = sample(num_classes, ignore)
    losses = segmentation_losses(logits, labels, name, smooth, over)
    assert list(losses) == [f"loss_{name}"]
    expected = mean(formula(smooth), *foreground(logits, labels))
    assert losses[f"loss_{name}"].item() == pytest.approx(expected, rel=1e-12)


def test_literal_dice_of_an_empty_mask_teaches_nothing_and_the_smoothed_one_does():
    labels = torch.zeros(1, 3, 3, dtype=torch.uint8)
    for smooth, teaches in ((0.0, False), (1.0, True)):
        logits = torch.full((1, 1, 3, 3), 0.5, requires_grad=True)
        loss = segmentation_losses(logits, labels, "dice", smooth)["loss_dice"]
        loss.backward()
        p = 1 / (1 + np.exp(-0.5))
        assert loss.item() == pytest.approx(1 - smooth / (9 * p * p + smooth), rel=1e-6)
        assert bool((logits.grad > 0).all()) is teaches


def test_over_a_batch_predicting_nothing_is_no_answer():
    # three of four images have no foreground: over each image their loss of 0 is a good mean
    labels = torch.zeros(4, 6, 6, dtype=torch.uint8)
    labels[3, 2:4, 2:4] = 1
    nothing = torch.full((4, 1, 6, 6), -50.0)
    for over, expected in (("image", (1 - 1 / 5) / 4), ("batch", 1 - 1 / 5)):
        loss = segmentation_losses(nothing, labels, "dice", over=over)["loss_dice"].item()
        assert loss == pytest.approx(expected, rel=1e-6)


def test_over_what_is_checked():
    with pytest.raises(ValueError, match=r"DICE_OVER must be one of image, batch, got 'images'"):
        segmentation_losses(*sample(), "dice", 1.0, "images")


def test_perfect_predictions_have_no_loss():
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    labels[1, 1:3, 1:3] = 1
    logits = 200.0 * (2.0 * labels[:, None] - 1)
    for name in ("dice", "iou", "bce"):
        assert segmentation_losses(logits, labels, name)[f"loss_{name}"].item() == pytest.approx(0, abs=1e-6)


def test_binary_cross_entropy():
    logits, labels = sample()
    p, q = foreground(logits, labels)
    bce = -np.mean(q * np.log(p) + (1 - q) * np.log(1 - p))
    assert segmentation_losses(logits, labels, "bce")["loss_bce"].item() == pytest.approx(bce, rel=1e-12)
    both = segmentation_losses(logits, labels, "dice_bce")
    assert both["loss_bce"].item() == pytest.approx(bce, rel=1e-12)
    assert both["loss_dice"].item() == pytest.approx(per_instance(dice(1.0), p, q), rel=1e-12)
    assert len(both) == 2


def test_cross_entropy_ignores_255():
    logits, labels = sample(3, ignore=True)
    z, y = logits.numpy(), labels.numpy()
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    picked = [log_p[n, y[n, i, j], i, j] for n, i, j in np.ndindex(*y.shape) if y[n, i, j] != 255]
    loss = segmentation_losses(logits, labels.to(torch.uint8), "cross_entropy")["loss_cross_entropy"]
    assert loss.item() == pytest.approx(-np.mean(picked), rel=1e-12)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "iou"])
def test_batch_of_ignored_pixels_is_finite(name):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    (loss,) = segmentation_losses(logits, torch.full((1, 4, 4), 255), name).values()
    loss.backward()
    assert loss.isfinite() and loss.item() == pytest.approx(0, abs=1e-7)
    assert not logits.grad.any()


@pytest.mark.parametrize(
    "name, num_classes", [("dice", 1), ("dice", 3), ("iou", 1), ("iou", 3), ("bce", 1), ("cross_entropy", 3)]
)
@pytest.mark.parametrize("over", ["image", "batch"])
def test_gradient(name, num_classes, over):
    logits, labels = sample(num_classes, ignore=num_classes > 1)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: tuple(segmentation_losses(z, labels, name, 1.0, over).values()), logits, fast_mode=True
    )


@pytest.mark.parametrize(
    "name, num_classes", [("dice", 1), ("iou", 1), ("dice_bce", 1), ("cross_entropy", 3), ("dice", 3)]
)
def test_float32_under_autocast(name, num_classes):
    logits, labels = sample(num_classes, dtype=torch.bfloat16)
    expected = segmentation_losses(logits.double(), labels, name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = segmentation_losses(logits, labels, name)
    for key, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[key].item(), rel=1e-6)


def test_class_probabilities():
    one = torch.tensor([1.0, 3.0]).log().view(1, 1, 1, 2)
    torch.testing.assert_close(class_probabilities(one).flatten(), torch.tensor([0.5, 0.75]))
    two = torch.tensor([1.0, 3.0], dtype=torch.bfloat16).log().view(1, 2, 1, 1)
    torch.testing.assert_close(
        class_probabilities(two).flatten(), torch.tensor([0.25, 0.75]), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize(
    "name, num_classes, message",
    [
        ("focal", 1, "must be one of dice, iou, bce, dice_bce, cross_entropy, got 'focal'"),
        ("bce", 3, "'bce' is for one class .*got 3: take 'cross_entropy'"),
        ("dice_bce", 2, "'dice_bce' is for one class"),
        ("cross_entropy", 1, "set MODEL.UNET.NUM_CLASSES to 2 or more, or take 'bce'"),
    ],
)
def test_losses_that_do_not_go(name, num_classes, message):
    logits, labels = sample(num_classes)
    with pytest.raises(ValueError, match=message):
        segmentation_losses(logits, labels, name)
