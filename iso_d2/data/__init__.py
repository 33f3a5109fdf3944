"""Data sets and the mapper. Importing this package registers the data sets."""

from ..files import BrokenImageError, read_image
from . import cifar, coco_subset, lgg, phantoms, shapes, shapes_cls
from .coco_json import load_coco, register_coco_json
from .image_folder import load_image_folder, register_image_folder
from .labelled_images import LabelledImages, register_labelled_images
from .lgg import register_lgg
from .mappers import AlbumentationsMapper, build_transforms
from .paths import cache_root, dataset_root
from .segmented_images import SegmentedImages, register_segmented_images
from .stock_mapper import CheckedDatasetMapper

__all__ = [
    "AlbumentationsMapper",
    "BrokenImageError",
    "CheckedDatasetMapper",
    "LabelledImages",
    "SegmentedImages",
    "build_transforms",
    "cache_root",
    "cifar",
    "coco_subset",
    "dataset_root",
    "lgg",
    "load_coco",
    "load_image_folder",
    "phantoms",
    "read_image",
    "register_coco_json",
    "register_image_folder",
    "register_labelled_images",
    "register_lgg",
    "register_segmented_images",
    "shapes",
    "shapes_cls",
]
