"""Image classification over any Detectron2 backbone."""

from collections.abc import Mapping

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn
from torch.nn import functional as F

from .batched_inputs import as_batch, check_label_range


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """Cross entropy over the classes of an image.

    The logits are the backbone's feature "linear" where it has one (ISONet with that output feature);
    else those of global average pooling, dropout and a linear layer on its last feature.

    Args:
        backbone (Backbone): the network.
        num_classes (int): how many classes there are.
        pixel_mean (sequence of float): subtracted from the pixels, one a channel.
        pixel_std (sequence of float): divides them afterwards.
        dropout (float): probability of dropout before the classifier's linear layer; a backbone with a
            "linear" of its own has its own dropout.
        label_smoothing (float): share of the target that is spread evenly over all classes.

    Raises:
        ValueError: the backbone's "linear" has another width than `num_classes`.

    Source: report, Section 3.1 (cross entropy).
    """

    @configurable
    def __init__(self, *, backbone, num_classes, pixel_mean, pixel_std, dropout=0.0, label_smoothing=0.0):
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        shapes = backbone.output_shape()
        self.feature = "linear" if "linear" in shapes else list(shapes)[-1]
        channels = shapes[self.feature].channels
        if self.feature != "linear":
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.dropout = nn.Dropout(dropout)
            self.linear = nn.Linear(channels, num_classes)
        elif channels != num_classes:
            raise ValueError(
                f"ImageClassifier has {num_classes} classes (MODEL.CLASSIFIER.NUM_CLASSES), its backbone's "
                f"linear layer {channels}: give both the same number"
            )
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.CLASSIFIER.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "dropout": cfg.MODEL.CLASSIFIER.DROPOUT,
            "label_smoothing": cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING,
        }

    @property
    def device(self):
        return self.pixel_mean.device

    def forward(self, batched_inputs):
        """The loss in training, the scores in inference.

        Args:
            batched_inputs (list[dict] or dict): Detectron2's list with an ``image`` (C, H, W), of one
                size in all, and in training a ``label`` each; or one batch of ``images`` (B, C, H, W)
                and ``labels`` (B,). Pixels are of 0 to 255 in any dtype, labels 0 to num_classes - 1.

        Returns:
            dict or list[dict]: in training ``loss_cls``, a scalar; in inference ``scores``, float32
            softmax: (num_classes,) for each dict of a list, (B, num_classes) for one batch.

        Raises:
            ValueError: images of several sizes, a label on the CPU that is out of range; on a GPU see
                :func:`~iso_d2.modeling.batched_inputs.check_label_range`.
            KeyError: no label in training.
        """
        images, labels = as_batch(batched_inputs, "label", "ImageClassifier", "classification", self.training)
        images = (images.to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
        logits = self.backbone(images)[self.feature]
        if self.feature != "linear":
            logits = self.linear(self.dropout(self.avgpool(logits).flatten(1)))
        logits = logits.float()
        if self.training:
            accepted = f"0 to {self.num_classes - 1} (MODEL.CLASSIFIER.NUM_CLASSES {self.num_classes})"
            check_label_range(labels, self.num_classes, accepted)
            labels = labels.to(self.device, torch.int64, non_blocking=True)
            return {"loss_cls": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}
        scores = logits.softmax(dim=1)
        return {"scores": scores} if isinstance(batched_inputs, Mapping) else [{"scores": s} for s in scores]
