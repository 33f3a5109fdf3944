"""Losses of semantic segmentation.

As in the report, Dice and IoU are computed for each image and then averaged. What differs: `smooth`, called
eps below. Without it the Dice loss of an image without foreground is 1 for any prediction, so that nothing is
learned from it, or 0 / 0. With it, predicting nothing is a good answer to most images of a set in which few
have a foreground, and a network can stay with it for long. With the sums over a whole batch it costs as soon
as one image of the batch has a foreground.

Source: report, section 5.1; over a batch: Isensee et al., nnU-Net, Nature Methods 18, 2021 ("batch dice").
"""

import torch
import torch.nn.functional as F
from fvcore.nn.distributed import differentiable_all_reduce

IGNORE_LABEL = 255
LOSSES = ("dice", "iou", "bce", "dice_bce", "cross_entropy")
OVER = ("image", "batch")


def check_loss(loss, num_classes, over="image"):
    """Raise ValueError unless `segmentation_losses` has that loss for this number of classes."""
    if over not in OVER:
        raise ValueError(f"MODEL.UNET.DICE_OVER must be one of {', '.join(OVER)}, got {over!r}")
    if loss not in LOSSES:
        raise ValueError(f"MODEL.UNET.LOSS must be one of {', '.join(LOSSES)}, got {loss!r}")
    if num_classes > 1 and loss in ("bce", "dice_bce"):
        raise ValueError(
            f"MODEL.UNET.LOSS {loss!r} is for one class against the background (MODEL.UNET.NUM_CLASSES 1), "
            f"got {num_classes}: take 'cross_entropy', 'dice' or 'iou'"
        )
    if num_classes == 1 and loss == "cross_entropy":
        raise ValueError(
            "MODEL.UNET.LOSS 'cross_entropy' is a softmax over the background and the other classes: set "
            "MODEL.UNET.NUM_CLASSES to 2 or more, or take 'bce'"
        )


def segmentation_losses(logits, labels, loss, smooth=1.0, over="image"):
    """The loss of a batch of images, by name. Computed in float32 at least, under autocast, too.

    Args:
        logits (Tensor): (N, K, H, W), of any floating dtype. K = 1: sigmoid, label 1 against 0; else softmax
            over the labels 0 to K - 1, of which 0 is the background.
        labels (Tensor): (N, H, W), integers. With K > 1 pixels of 255 do not count.
        loss (str): "dice" or "iou": of the foreground classes; "bce"; "dice_bce": both; "cross_entropy".
        smooth, over: eps and pixels of `dice_loss` and `iou_loss`.

    Returns:
        dict[str, Tensor]: each without dimensions; "loss_dice" and so on, for "dice_bce" two of them.

    Raises:
        ValueError: as `check_loss`.
    """
    check_loss(loss, logits.shape[1], over)
    logits = _at_least_float32(logits)
    if loss == "cross_entropy":
        return {"loss_cross_entropy": _cross_entropy(logits, labels)}
    losses = {}
    targets = _foreground_targets(logits, labels)
    if loss in ("dice", "dice_bce"):
        losses["loss_dice"] = dice_loss(_foreground_probabilities(logits, labels), targets, smooth, over)
    if loss == "iou":
        losses["loss_iou"] = iou_loss(_foreground_probabilities(logits, labels), targets, smooth, over)
    if loss in ("bce", "dice_bce"):
        losses["loss_bce"] = F.binary_cross_entropy_with_logits(logits, targets)
    return losses


def class_probabilities(logits):
    """(N, K, H, W) -> the same shape, at least float32: sigmoid for K = 1, softmax otherwise."""
    logits = _at_least_float32(logits)
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def dice_loss(probabilities, targets, smooth=1.0, over="image"):
    """1 - (2 sum P Q + eps) / (sum P^2 + sum Q^2 + eps), the sums over the pixels of one class.

    Args:
        probabilities (Tensor): P, (N, K, H, W).
        targets (Tensor): Q, the same shape and dtype.
        smooth (float): eps.
        over (str): "image": the sums are those of each image. "batch": of all images together; several
            processes add up theirs.

    Returns:
        Tensor: without dimensions, the mean over classes and, over "image", images.

    Source: report, section 5.1, with eps; "batch": nnU-Net.
    """
    both = _sums(probabilities * targets, over)
    either = _sums(probabilities.square() + targets.square(), over)
    return (1 - (2 * both + smooth) / (either + smooth)).mean()


def iou_loss(probabilities, targets, smooth=1.0, over="image"):
    """1 - (sum P Q + eps) / (sum (P + Q - P Q) + eps), the sums over the pixels of one class.

    Args and Returns: as for `dice_loss`.

    Source: report, section 5.1, with eps.
    """
    product = probabilities * targets
    union = _sums(probabilities + targets - product, over)
    return (1 - (_sums(product, over) + smooth) / (union + smooth)).mean()


def _sums(values, over):
    """(N, K, H, W) -> (N, K), the sums of each image, or (K,), those of the batches of all processes."""
    return values.sum((-2, -1)) if over == "image" else differentiable_all_reduce(values.sum((0, -2, -1)))


def _cross_entropy(logits, labels):
    # not reduction="mean", which is 0 / 0 if no pixel counts
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_LABEL, reduction="sum")
    return total / (labels != IGNORE_LABEL).sum().clamp(min=1)


def _foreground_probabilities(logits, labels):
    """(N, max(K - 1, 1), H, W), 0 at ignored pixels."""
    probabilities = class_probabilities(logits)
    if logits.shape[1] == 1:
        return probabilities
    return probabilities[:, 1:] * (labels != IGNORE_LABEL)[:, None]


def _foreground_targets(logits, labels):
    """(N, H, W) -> (N, max(K - 1, 1), H, W), 1 in the channel of the pixel's class."""
    classes = torch.arange(1, max(logits.shape[1], 2), device=labels.device)
    return (labels[:, None] == classes.view(-1, 1, 1)).to(logits.dtype)


def _at_least_float32(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))
