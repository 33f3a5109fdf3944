"""Slices of volumes with their masks, held as two arrays, and what else is known of each slice."""

import dataclasses
import functools
import json

import numpy as np

from .registration import register

CLASSES = ("background", "tumour")


@dataclasses.dataclass(frozen=True)
class SegmentedImages:
    """Preprocessed images of one size with a label for each pixel.

    Args:
        images (ndarray): uint8 RGB, (N, 3, S, S).
        labels (ndarray): uint8, (N, S, S); classes from 0.
        records (list[dict]): of each image, the rest of its dataset dict: ``file_name``, ``image_id``,
            ``height``, ``width``, ``patient``, ``placement`` ...

    Raises:
        ValueError: an array has another shape or type, or the numbers of images, labels and records differ.
    """

    images: np.ndarray
    labels: np.ndarray
    records: list

    def __post_init__(self):
        images, labels = self.images, self.labels
        shape = images.shape
        if images.ndim != 4 or shape[1] != 3 or shape[2] != shape[3] or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 (N, 3, S, S), got {images.dtype} {shape}")
        expected = (len(images), *shape[2:])
        if labels.shape != expected or labels.dtype != np.uint8:
            raise ValueError(
                f"labels must be uint8 {expected}, one a pixel, got {labels.dtype} {labels.shape}"
            )
        if len(self.records) != len(images):
            raise ValueError(f"{len(images)} images need as many records, got {len(self.records)}")

    def select(self, indices):
        """Some of the images, copied into memory.

        Args:
            indices (list[int]): which, in the order wanted.

        Returns:
            SegmentedImages
        """
        return SegmentedImages(self.images[indices], self.labels[indices], [self.records[i] for i in indices])

    def dataset_dicts(self, indices):
        """Some of the images as Detectron2's dataset dicts.

        Args:
            indices (list[int]): which, in the order wanted.

        Returns:
            list[dict]: the record of each with ``image_array`` (uint8 RGB, (3, S, S)) and ``sem_seg_array``
            (uint8, (S, S)), both views.
        """
        # Views as plain arrays also where the arrays are memory-mapped files
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        return [{**self.records[i], "image_array": images[i], "sem_seg_array": labels[i]} for i in indices]

    def save(self, folder):
        """Write ``images.npy``, ``labels.npy`` and ``records.json`` into a folder (Path)."""
        np.save(folder / "images.npy", self.images)
        np.save(folder / "labels.npy", self.labels)
        (folder / "records.json").write_text(json.dumps(self.records))

    @classmethod
    def load(cls, folder, root):
        """Open what ``save`` wrote; the arrays are mapped from the files, read-only.

        Args:
            folder (Path): in a cache, so that it may be removed.
            root (Path): what the records' file names are relative to; it is put before them.

        Returns:
            SegmentedImages

        Raises:
            ValueError: a file is missing or damaged.
        """
        try:
            images, labels = (
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("images", "labels")
            )
            records = json.loads((folder / "records.json").read_text())
            for record in records:
                for key in ("file_name", "mask_file_name"):
                    record[key] = str(root / record[key])
            return cls(images, labels, records)
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read {folder} ({error}). Remove it: it is then made again.") from error


def register_segmented_images(name, load, choose, size):
    """Register a part of a set of SegmentedImages, in place of an earlier data set of that name.

    Its metadata get ``load_arrays``, by which loaders of whole batches come to the arrays.

    Args:
        name (str): name in Detectron2's catalogs.
        load (callable): returns SegmentedImages, of which this data set is a part.
        choose (callable): takes their records, returns the indices that belong to the part, list[int].
        size (int): side of the preprocessed images in pixels; ``image_size`` of the metadata, by which
            other images are brought to the same size.
    """
    register(
        name,
        functools.partial(_load_dicts, load, choose),
        evaluator_type="medical_segmentation",
        stuff_classes=list(CLASSES),
        ignore_label=255,
        load_arrays=functools.partial(_load_arrays, load, choose),
        image_size=size,
    )


def _load_dicts(load, choose):
    whole = load()
    return whole.dataset_dicts(choose(whole.records))


def _load_arrays(load, choose):
    whole = load()
    return whole.select(choose(whole.records))
