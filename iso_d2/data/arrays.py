"""Data sets of small images that are held as arrays, labelled by image or by pixel."""

import dataclasses
import functools
import json

import numpy as np

from ..placement import Placement
from .catalog import register

SEGMENTATION = {"stuff_classes": ["background", "tumour"], "ignore_label": 255}


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
        _check(self, self.images.shape[:1], np.int64, "one an image")

    def dataset_dicts(self):
        """list[dict]: the same as Detectron2's dataset dicts.

        They hold ``image_id``, ``height``, ``width``, ``label`` (int) and ``image_array``, a view of the
        image (uint8 RGB, (3, H, W)).
        """
        height, width = self.images.shape[2:]
        return [
            {"image_id": index, "height": height, "width": width, "image_array": image, "label": label}
            for index, (image, label) in enumerate(zip(self.images, self.labels.tolist(), strict=True))
        ]


@dataclasses.dataclass(frozen=True)
class SegmentedImages:
    """Preprocessed slices of volumes, of one size, with a label for each pixel.

    Args:
        images (ndarray): uint8 RGB, (N, 3, S, S).
        labels (ndarray): uint8, (N, S, S); classes from 0.
        records (list[dict]): of each image, the rest of its dataset dict: ``file_name``, ``image_id``,
            ``height``, ``width``, ``patient``, ``placement`` (a Placement) ...

    Raises:
        ValueError: an array has another shape or type, or the numbers of images, labels and records differ.
    """

    images: np.ndarray
    labels: np.ndarray
    records: list

    def __post_init__(self):
        shape = self.images.shape
        _check(self, (*shape[:1], *shape[2:]), np.uint8, "one a pixel")
        if shape[2] != shape[3]:
            raise ValueError(f"images must be square, got {shape}")
        if len(self.records) != len(self.images):
            raise ValueError(f"{len(self.images)} images need as many records, got {len(self.records)}")

    def select(self, indices):
        """Some of the images (list[int], in the order wanted), copied into memory: SegmentedImages."""
        return SegmentedImages(self.images[indices], self.labels[indices], [self.records[i] for i in indices])

    def dataset_dicts(self, indices):
        """list[dict]: some of the images (list[int], in the order wanted) as Detectron2's dataset dicts.

        They are the records with ``image_array`` (uint8 RGB, (3, S, S)) and ``sem_seg_array`` (uint8,
        (S, S)), both views.
        """
        # Views as plain arrays also where the arrays are memory-mapped files
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        return [{**self.records[i], "image_array": images[i], "sem_seg_array": labels[i]} for i in indices]

    def save(self, folder):
        """Write ``images.npy``, ``labels.npy`` and ``records.json`` into a folder (Path)."""
        np.save(folder / "images.npy", self.images)
        np.save(folder / "labels.npy", self.labels)
        (folder / "records.json").write_text(json.dumps(self.records, default=dataclasses.asdict))

    @classmethod
    def load(cls, folder, root):
        """Open what ``save`` wrote; the arrays are mapped from the files, read-only.

        Args:
            folder (Path): in a cache, so that it may be removed.
            root (Path): what the records' file names are relative to; it is put before them.

        Raises:
            ValueError: a file is missing or damaged.
        """
        try:
            images, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels"))
            records = json.loads((folder / "records.json").read_text())
            for record in records:
                record["placement"] = Placement(**record["placement"])
                for key in ("file_name", "mask_file_name"):
                    record[key] = str(root / record[key])
            return cls(images, labels, records)
        except Exception as error:  # by damage, up to tokenize.TokenError of a header
            raise ValueError(f"cannot read {folder} ({error}). Remove it: it is then made again.") from error


def _check(data, shape, dtype, reading):
    images, labels = data.images, data.labels
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {images.shape}")
    if labels.shape != shape or labels.dtype != dtype:
        raise ValueError(
            f"labels must be {np.dtype(dtype)} {shape}, {reading}, got {labels.dtype} {labels.shape}"
        )


def register_labelled_images(name, load, classes):
    """Register a data set of LabelledImages for classification, in place of an earlier one of that name.

    Its metadata get ``load_arrays``, by which loaders of whole batches find the arrays.

    Args:
        name (str): name in Detectron2's catalogs.
        load (callable): returns the LabelledImages.
        classes (sequence[str]): class names in the order of the labels.
    """
    metadata = {"evaluator_type": "classification", "load_arrays": load, "thing_classes": list(classes)}
    register(name, lambda: load().dataset_dicts(), **metadata)


def register_segmented_images(name, load, choose, size, patients=None):
    """Register a part of a set of SegmentedImages, as ``register_labelled_images`` does.

    Args:
        name (str): name in Detectron2's catalogs.
        load (callable): returns SegmentedImages, of which this data set is a part.
        choose (callable): takes their records, returns the indices that belong to the part, list[int].
        size (int): side of the preprocessed images in pixels; ``image_size`` of the metadata, by which
            other images are brought to the same size.
        patients (sequence[str] or None): an order of all patients, some of whom may not be there, by which
            folds.py divides them; None: that of the records.
    """

    def part(take):
        whole = load()
        return take(whole, choose(whole.records))

    register(
        name,
        functools.partial(part, SegmentedImages.dataset_dicts),
        evaluator_type="medical_segmentation",
        load_arrays=functools.partial(part, SegmentedImages.select),
        image_size=size,
        patients=None if patients is None else tuple(patients),
        **SEGMENTATION,
    )
