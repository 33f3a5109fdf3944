"""Small labelled images that are held in memory as two arrays."""

import dataclasses
import functools

import numpy as np

from .registration import register


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images of one size with one class each.

    Args:
        images (ndarray): uint8 RGB, (N, 3, H, W).
        labels (ndarray): int64, (N,), from 0.

    Raises:
        ValueError: an array has another shape or type, or there are not as many labels as images.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {images.shape}")
        if labels.shape != images.shape[:1] or labels.dtype != np.int64:
            raise ValueError(
                f"labels must be int64 ({len(images)},), one an image, got {labels.dtype} {labels.shape}"
            )

    def dataset_dicts(self):
        """The same as Detectron2's dataset dicts.

        Returns:
            list[dict]: ``image_id``, ``height``, ``width``, ``label`` (int) and ``image_array``, a view of
            the image (uint8 RGB, (3, H, W)).
        """
        height, width = self.images.shape[2:]
        return [
            {"image_id": index, "height": height, "width": width, "image_array": image, "label": label}
            for index, (image, label) in enumerate(zip(self.images, self.labels.tolist(), strict=True))
        ]


def register_labelled_images(name, load, classes):
    """Register a data set of LabelledImages for classification, in place of an earlier one of that name.

    Its metadata get ``load_arrays``, by which loaders of whole batches come to the arrays.

    Args:
        name (str): name in Detectron2's catalogs.
        load (callable): returns the LabelledImages.
        classes (sequence[str]): class names in the order of the labels.
    """
    register(
        name,
        functools.partial(_load_dicts, load),
        evaluator_type="classification",
        thing_classes=list(classes),
        load_arrays=load,
    )


def _load_dicts(load):
    return load().dataset_dicts()
