"""Data sets and the mapper. Importing this package registers the data sets."""

from .. import needs_detectron2  # noqa: F401  first, for its error
from ..files import BrokenImageError, read_image
from . import cifar, coco, lgg
from .arrays import LabelledImages, SegmentedImages, register_labelled_images, register_segmented_images
from .catalog import cache_root, dataset_root
from .coco.annotations import load_coco, register_coco_json
from .generated import phantoms, scene_sets, shape_images
from .image_folder import load_image_folder, register_image_folder
from .mappers import AlbumentationsMapper, CheckedDatasetMapper, build_transforms

__all__ = [
    "AlbumentationsMapper",
    "BrokenImageError",
    "CheckedDatasetMapper",
    "LabelledImages",
    "SegmentedImages",
    "build_transforms",
    "cache_root",
    "cifar",
    "coco",
    "dataset_root",
    "lgg",
    "load_coco",
    "load_image_folder",
    "phantoms",
    "read_image",
    "register_coco_json",
    "register_image_folder",
    "register_labelled_images",
    "register_segmented_images",
    "scene_sets",
    "shape_images",
]
