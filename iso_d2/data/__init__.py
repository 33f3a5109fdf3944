"""Data sets and the mapper. Importing this package registers the data sets."""

from . import coco_subset, shapes
from .coco_json import load_coco, register_coco_json
from .mappers import AlbumentationsMapper, BrokenImageError, build_transforms, read_image
from .paths import cache_root, dataset_root

__all__ = [
    "AlbumentationsMapper",
    "BrokenImageError",
    "build_transforms",
    "cache_root",
    "coco_subset",
    "dataset_root",
    "load_coco",
    "read_image",
    "register_coco_json",
    "shapes",
]
