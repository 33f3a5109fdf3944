"""Semantic segmentation by a UNet."""

import logging
from collections.abc import Mapping
from itertools import combinations

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.logger import log_first_n
from torch import nn

from ..placement import resize_bilinear
from .batched_inputs import as_batch, check_label_range
from .segmentation_losses import IGNORE_LABEL, check_loss, class_probabilities, segmentation_losses
from .unet import UNet

MIRROR_AXES = {"height": -2, "width": -1}


@META_ARCH_REGISTRY.register()
class UNetSegmentor(nn.Module):
    """A class for each pixel: standardisation, UNet, loss or probabilities.

    One class (``unet.num_classes`` 1) is told from the background by a sigmoid; with more a softmax chooses
    among them, of which 0 is the background.

    Args:
        unet (UNet): the network.
        loss (str): as in :func:`~iso_d2.modeling.segmentation_losses.segmentation_losses`.
        dice_smooth (float): eps of the Dice and IoU losses.
        dice_over (str): these losses of each "image", or of all images of a "batch" together, see
            :func:`~iso_d2.modeling.segmentation_losses.dice_loss`.
        standardize (str): "image": each channel of each image minus its mean, by its standard deviation, the
            latter at least 1 grey level (as the report does); "dataset": by `pixel_mean` and `pixel_std`.
        pixel_mean (sequence of float): one a channel, for "dataset".
        pixel_std (sequence of float): one a channel, for "dataset".
        mirror_axes (sequence of str): in inference the probabilities are the mean over the image and its
            mirror images along any of these axes, "height" and "width", mirrored back: 2 or 4 forward passes.

    Raises:
        ValueError: an option that does not exist, a loss that is not for that number of classes, pixel_mean
            or pixel_std for another number of channels.

    Source: report, sections 3.2, 4.1 and 5.1. Mirroring: Isensee et al., nnU-Net, Nature Methods 18, 2021.
    """

    @configurable
    def __init__(
        self,
        *,
        unet,
        loss="dice",
        dice_smooth=1.0,
        dice_over="image",
        standardize="image",
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        mirror_axes=(),
    ):
        super().__init__()
        check_loss(loss, unet.num_classes, dice_over)
        if standardize not in ("image", "dataset"):
            raise ValueError(f"MODEL.UNET.STANDARDIZE must be 'image' or 'dataset', got {standardize!r}")
        if standardize == "dataset" and not len(pixel_mean) == len(pixel_std) == unet.in_channels:
            raise ValueError(
                "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD must have a value for each of the "
                f"{unet.in_channels} channels (MODEL.UNET.IN_CHANNELS), got {pixel_mean} and {pixel_std}"
            )
        if not set(mirror_axes) <= set(MIRROR_AXES) or len(set(mirror_axes)) < len(mirror_axes):
            raise ValueError(
                f"TEST.MIRROR_AXES must hold each of {', '.join(MIRROR_AXES)} at most once, got {mirror_axes}"
            )
        self.unet = unet
        self.loss = loss
        self.dice_smooth = dice_smooth
        self.dice_over = dice_over
        self.standardize = standardize
        dims = [MIRROR_AXES[axis] for axis in mirror_axes]
        self.mirrorings = [m for n in range(1, len(dims) + 1) for m in combinations(dims, n)]
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        options = {key.lower(): value for key, value in cfg.MODEL.UNET.items()}
        own = {key: options.pop(key) for key in ("loss", "dice_smooth", "dice_over", "standardize")}
        own |= {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
        own["mirror_axes"] = cfg.TEST.MIRROR_AXES
        return {"unet": UNet(**options), **own}

    @property
    def device(self):
        return self.pixel_mean.device

    def forward(self, batched_inputs):
        """The loss in training, the probabilities in inference.

        Args:
            batched_inputs (list[dict] or dict): Detectron2's list with an ``image`` (C, H, W) and in training
                a ``sem_seg`` (H, W) each, in training of one size in all; or one batch of ``images``
                (B, C, H, W) and ``labels`` (B, H, W). Pixels are of 0 to 255 in any dtype; labels are
                integers, 0 and 1 for one class, else below the number of classes or 255, which is ignored.

        Returns:
            dict or list[dict]: in training the losses. In inference, for each dict of a list, float32:
            ``probabilities`` (K, H, W) on the pixels of ``image`` and ``sem_seg`` (K, height, width) on those
            of the original image, see `to_original`; for one batch only ``probabilities`` (B, K, H, W).

        Raises:
            ValueError: images of several sizes in training or with another number of channels, labels of
                another size than the images or, on the CPU, out of range (on a GPU see
                :func:`~iso_d2.modeling.batched_inputs.check_label_range`).
            KeyError: no labels in training.
        """
        if self.training:
            images, labels = as_batch(batched_inputs, "sem_seg", "UNetSegmentor", "segmentation", True)
            self._check_labels(labels, images.shape)
            labels = labels.to(self.device, non_blocking=True)
            logits = self._logits(images)
            levels = logits if isinstance(logits, list) else [logits]  # deep supervision: the finest first
            total, losses = sum(0.5**i for i in range(len(levels))), {}
            for i, level in enumerate(levels):
                of_level = segmentation_losses(level, labels, self.loss, self.dice_smooth, self.dice_over)
                for name, loss in of_level.items():
                    losses[name] = losses.get(name, 0) + 0.5**i / total * loss
            return losses
        return _infer(self.probabilities, batched_inputs)

    def probabilities(self, images):
        """(B, C, H, W), of 0 to 255 -> (B, K, H, W), float32: the mean over the mirrorings."""
        mean = class_probabilities(self._logits(images))
        if self.mirrorings:
            for dims in self.mirrorings:
                mean = mean + class_probabilities(self._logits(images.flip(dims))).flip(dims)
            mean = mean / (1 + len(self.mirrorings))
        return mean

    def _logits(self, images):
        if images.shape[1] != self.unet.in_channels:
            raise ValueError(
                f"UNetSegmentor takes images of {self.unet.in_channels} channels (MODEL.UNET.IN_CHANNELS), "
                f"got {images.shape[1]}: INPUT.FORMAT decides how many the mapper makes"
            )
        images = images.to(self.device, non_blocking=True).float()
        if self.standardize == "dataset":
            return self.unet((images - self.pixel_mean) / self.pixel_std)
        std, mean = torch.std_mean(images, dim=(-2, -1), correction=0, keepdim=True)
        return self.unet((images - mean) / std.clamp(min=1))

    def _check_labels(self, labels, shape):
        if labels.shape != (shape[0], *shape[-2:]):
            raise ValueError(
                f"UNetSegmentor got labels of shape {tuple(labels.shape)} for images of {tuple(shape)}: "
                "a label belongs to each pixel"
            )
        num_classes = self.unet.num_classes
        accepted = "0 or 1" if num_classes == 1 else f"0 to {num_classes - 1}, or 255 to be ignored"
        counted = labels if num_classes == 1 else labels.where(labels != IGNORE_LABEL, 0)
        check_label_range(
            counted,
            max(num_classes, 2),
            f"{accepted} (MODEL.UNET.NUM_CLASSES {num_classes})",
            ": masks of 0/255 must become 0/1, other classes 0, 1, 2, ...",
        )
        if labels.device.type == "cpu" and not counted.any() and labels.max() == IGNORE_LABEL:
            log_first_n(
                logging.WARNING,
                "A batch of labels has no class but 0, and 255, which is ignored. If 255 means the "
                "foreground, masks of 0/255 must become 0/1.",
                name=__name__,
            )


class SegmentorEnsemble(nn.Module):
    """Several trained UNetSegmentors as one: the mean of their probabilities. For inference alone.

    Args:
        models (sequence[UNetSegmentor]): of the same classes; at least one.

    Source: the folds' ensemble of nnU-Net, Isensee et al., Nature Methods 18, 2021.
    """

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models).eval()
        self.training = False

    def forward(self, batched_inputs):
        """As :meth:`UNetSegmentor.forward` in inference."""
        return _infer(self.probabilities, batched_inputs)

    def probabilities(self, images):
        """As :meth:`UNetSegmentor.probabilities`."""
        return sum(model.probabilities(images) for model in self.models) / len(self.models)


def _infer(probabilities, batched_inputs):
    """What UNetSegmentor gives in inference, by a function (B, C, H, W) -> (B, K, H, W)."""
    if isinstance(batched_inputs, Mapping):
        return {"probabilities": probabilities(batched_inputs["images"])}
    images = [x["image"] for x in batched_inputs]
    if len({image.shape for image in images}) == 1:
        found = probabilities(torch.stack(images))
    else:
        found = [probabilities(image[None])[0] for image in images]
    return [
        {"probabilities": p, "sem_seg": to_original(p, x)} for p, x in zip(found, batched_inputs, strict=True)
    ]


def to_original(probabilities, dataset_dict):
    """Bring probabilities back to the pixels of the original image.

    Through its ``placement`` where there is one; otherwise they are resized to ``height`` x ``width``, and
    stay as they are where these are missing.

    Args:
        probabilities (Tensor): (K, S, S), or (K, H, W) without placement; for K > 1 class 0 is the
            background.
        dataset_dict (dict): with ``height``, ``width`` in original pixels, and ``placement`` (Placement).

    Returns:
        Tensor: (K, height, width), of the same dtype.
    """
    rows, columns = probabilities.shape[1:]
    size = dataset_dict.get("height", rows), dataset_dict.get("width", columns)
    placement = dataset_dict.get("placement")
    return placement.put_back(probabilities, *size) if placement else resize_bilinear(probabilities, *size)
