"""Labels of the training data that the model has no class for are refused before they reach it.

Every label is looked at once, on the CPU: those of image files in the mapper, those of whole arrays before
they go to the training device. On a GPU itself an error can only be an assertion of the device, after which
nothing runs any more. The models make such a check there, and an ordinary one on the CPU.
"""

from typing import NamedTuple

import numpy as np


class LabelRange(NamedTuple):
    """What labels a model accepts."""

    num_classes: int  # labels are 0 to num_classes - 1
    ignored: int | None  # the label of pixels that do not count
    keys: str  # config keys that decide on both

    @classmethod
    def from_config(cls, cfg):
        """The range for the labels of images or pixels; None for models that have neither."""
        model = cfg.MODEL
        if model.META_ARCHITECTURE == "ImageClassifier":
            return cls(model.CLASSIFIER.NUM_CLASSES, None, "MODEL.CLASSIFIER.NUM_CLASSES")
        if model.META_ARCHITECTURE == "UNetSegmentor":
            num_classes = model.UNET.NUM_CLASSES
            return cls(max(num_classes, 2), 255 if num_classes > 1 else None, "MODEL.UNET.NUM_CLASSES")
        if model.META_ARCHITECTURE in ("SemanticSegmentor", "PanopticFPN"):
            head = model.SEM_SEG_HEAD
            return cls(head.NUM_CLASSES, head.IGNORE_VALUE, "MODEL.SEM_SEG_HEAD.NUM_CLASSES and IGNORE_VALUE")
        return None

    def check(self, labels, name):
        """Raise ValueError at a label that the model has no class for.

        Args:
            labels (ndarray): of integers or bool, of any shape.
            name (str): of their file or data set, for the message.
        """
        # This settles most images in a fraction of the time of what follows.
        if labels.size == 0 or (labels.max() < self.num_classes and labels.min() >= 0):
            return
        values = np.unique(labels)
        values = values[(values != self.ignored) & ((values < 0) | (values >= self.num_classes))].tolist()
        if values:
            named = ", ".join(map(str, values[:8])) + (" and others" if len(values) > 8 else "")
            ignores = "" if self.ignored is None else f" and ignores {self.ignored}"
            raise ValueError(
                f"{name} holds the labels {named}, but the model tells the classes 0 to "
                f"{self.num_classes - 1} apart{ignores}. Renumber the labels (masks of 0/255 must become "
                f"0/1), or set {self.keys}."
            )
