"""Dataset dict -> model input: by Albumentations, or by Detectron2's own mapper with clearer errors."""

import copy
import logging
import random

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper, detection_utils, transforms
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, polygons_to_bitmask
from detectron2.utils.logger import log_first_n
from PIL import Image

from ..files import BrokenImageError, read_image, read_label_image
from .labels import LabelRange
from .transforms import build_transforms, check_test_transforms, compose

logger = logging.getLogger(__name__)

_FORMATS = ("RGB", "BGR", "L")


class AlbumentationsMapper:
    """Read an image, apply Albumentations to it and its annotations, and give what Detectron2's models take.

    Boxes that the transforms empty or push out are dropped with their labels and masks; crowds are dropped.
    Pixels are not normalised: the models do that. Colour transforms always see RGB.

    Args:
        is_train (bool): for inference, annotations are left out.
        augmentations (list[albumentations.BasicTransform]): applied in order. For inference they may change
            pixel values or resize the whole image; nothing else can be undone for the predictions.
        image_format (str): "RGB", "BGR" or "L", the channel order of the result.
        use_instance_mask (bool): add ``gt_masks``, always as BitMasks, which Mask R-CNN takes from either
            INPUT.MASK_FORMAT. Annotations may hold polygons or RLE.
        skip_broken (bool): in training, return None for an image that cannot be read, for which Detectron2's
            loader takes another one; the file is named in the log.
        whole_image (bool): predictions are of the image as a whole (ImageClassifier), so that there is
            nothing to undo and inference may crop.
        label_range (LabelRange or None): what label images are checked against in training.
    """

    @configurable
    def __init__(
        self,
        is_train,
        *,
        augmentations,
        image_format,
        use_instance_mask=False,
        skip_broken=False,
        whole_image=False,
        label_range=None,
    ):
        if image_format not in _FORMATS:
            raise ValueError(f"INPUT.FORMAT must be one of {', '.join(_FORMATS)} here, got {image_format!r}")
        if not is_train and not whole_image:
            check_test_transforms(augmentations)
        self.pipeline = compose(augmentations, with_boxes=is_train)
        self.is_train = is_train
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.skip_broken = skip_broken and is_train
        self.label_range = label_range if is_train else None
        logger.info("Albumentations in %s: %s", "training" if is_train else "inference", augmentations)

    @classmethod
    def from_config(cls, cfg, is_train=True):
        if cfg.MODEL.KEYPOINT_ON:
            raise ValueError(
                "the Albumentations mapper has no keypoints: set INPUT.MAPPER detectron2 "
                "or MODEL.KEYPOINT_ON False"
            )
        pipelines = cfg.INPUT.ALBUMENTATIONS
        return {
            "is_train": is_train,
            "augmentations": build_transforms(pipelines.TRAIN if is_train else pipelines.TEST),
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "skip_broken": cfg.INPUT.SKIP_BROKEN,
            "whole_image": cfg.MODEL.META_ARCHITECTURE == "ImageClassifier",
            "label_range": LabelRange.from_config(cfg),
        }

    def __call__(self, dataset_dict):
        """Map one dataset dict.

        Args:
            dataset_dict (dict): Detectron2's format; it is not changed. ``image_array`` (uint8 RGB,
                (3, H, W)) may take the place of ``file_name``, with ``sem_seg_array`` (uint8, (H, W)) that of
                ``sem_seg_file_name``.

        Returns:
            dict or None: a copy with ``image`` (uint8, (C, H, W)); with ``sem_seg`` (int64, (H, W)) if it has
            labels; in training, if it has annotations, with ``instances`` (gt_boxes XYXY in
            pixels, gt_classes, gt_masks). ``height`` and ``width`` are the file's; what else the dict holds
            (``label``) stays. None: skipped as broken.

        Raises:
            BrokenImageError: a file cannot be read and is not to be skipped.
            detectron2.data.detection_utils.SizeMismatchError: the image is not as large as the dict says.
            ValueError: a segmentation is needed and missing, or it has another size than the image.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        # colour transforms see RGB
        read_format = "RGB" if self.image_format == "BGR" else self.image_format
        targets = _read(dataset_dict, read_format, self.skip_broken, self.label_range)
        if targets is None:
            return None
        annotations = dataset_dict.pop("annotations", None)
        if self.is_train and annotations is not None:
            annotations = [a for a in annotations if a.get("iscrowd", 0) == 0]
            targets["bboxes"] = _numbered_boxes(annotations)
            if self.use_instance_mask:
                size = targets["image"].shape[:2]
                targets["masks"] = [_bitmask(a, size, dataset_dict["file_name"]) for a in annotations]

        # Albumentations keeps a random state that worker processes inherit alike, and seeds all transforms
        # with one number (so that two flips would agree). PyTorch's state differs by worker and follows SEED.
        seed = int(torch.randint(2**31, ())) if self.is_train else 0  # inference has nothing to draw
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        mapped = self.pipeline(**targets)

        dataset_dict["image"] = self._to_tensor(mapped["image"])
        if "mask" in mapped:
            dataset_dict["sem_seg"] = torch.as_tensor(mapped["mask"].astype("int64"))
        if "bboxes" in mapped:
            dataset_dict["instances"] = _instances(
                mapped["image"].shape[:2], mapped["bboxes"], annotations, mapped.get("masks")
            )
        return dataset_dict

    def _to_tensor(self, image):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise ValueError(
                "INPUT.ALBUMENTATIONS must leave the image a uint8 array, since the model normalises it "
                f"by PIXEL_MEAN and PIXEL_STD; got {type(image).__name__} of {image.dtype}. Take Normalize, "
                "ToFloat and ToTensorV2 out."
            )
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))  # (H, W, C) -> (C, H, W)


class CheckedDatasetMapper(DatasetMapper):
    """Detectron2's own mapper (INPUT.MIN_SIZE_TRAIN etc.) with the reading and the errors of the other one.

    Args:
        cfg (CfgNode): as Detectron2's mapper takes it; INPUT.SKIP_BROKEN counts in training.
        is_train (bool): for inference, annotations are left out.
    """

    def __init__(self, cfg, is_train=True):
        super().__init__(cfg, is_train=is_train)
        self.skip_broken = cfg.INPUT.SKIP_BROKEN and is_train
        self.label_range = LabelRange.from_config(cfg) if is_train else None

    def __call__(self, dataset_dict):
        dataset_dict = copy.deepcopy(dataset_dict)
        if self.is_train and self.use_instance_mask:
            for annotation in dataset_dict.get("annotations", []):
                _check_segmentation(annotation, dataset_dict["file_name"])
        targets = _read(dataset_dict, self.image_format, self.skip_broken, self.label_range)
        if targets is None:
            return None
        mapped = transforms.AugInput(targets["image"], sem_seg=targets.get("mask"))
        applied, size = self.augmentations(mapped), mapped.image.shape[:2]
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(mapped.image.transpose(2, 0, 1)))
        if mapped.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(mapped.sem_seg.astype("int64"))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(dataset_dict, size, applied, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        if "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, applied, size)
        return dataset_dict


def _read(dataset_dict, image_format, skip_broken, label_range):
    """dict of ``image`` and ``mask``, if any, as arrays; None: skipped as broken."""
    if "image_array" in dataset_dict:
        pixels = dataset_dict.pop("image_array").transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        targets = {"image": detection_utils.convert_PIL_to_numpy(image, image_format)}
        if "sem_seg_array" in dataset_dict:
            targets["mask"] = dataset_dict.pop("sem_seg_array")
        return targets
    file_name = dataset_dict["file_name"]
    label_file = dataset_dict.pop("sem_seg_file_name", None)
    try:
        targets = {"image": read_image(file_name, image_format)}
        if label_file is not None:
            targets["mask"] = read_label_image(label_file)
    except BrokenImageError as error:
        if not skip_broken:
            raise
        return _skip(error)
    detection_utils.check_image_size(dataset_dict, targets["image"])
    if label_file is not None:
        size, image_size = targets["mask"].shape, targets["image"].shape[:2]
        if size != image_size:
            raise ValueError(f"{label_file} is of size {size}, its image {file_name} of {image_size}")
        if label_range is not None:
            label_range.check(targets["mask"], label_file)
    return targets


def _skip(error):
    """Log a file that a mapper skips, and return None, for which Detectron2's loader takes another one."""
    log_first_n(logging.WARNING, f"skipped: {error}", key="message", name=__name__)


def _numbered_boxes(annotations):
    """(N, 5) float64: x0, y0, x1, y1 and the index of the annotation, by which survivors are known."""
    boxes = [
        [*BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS), index]
        for index, a in enumerate(annotations)
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 5)


def _check_segmentation(annotation, file_name):
    if not annotation.get("segmentation"):
        raise ValueError(
            f"{file_name}: the annotation with box {annotation['bbox']} has no segmentation, which "
            "MODEL.MASK_ON needs. Take a data set with masks, or set MODEL.MASK_ON False."
        )


def _bitmask(annotation, size, file_name):
    """The mask of an annotation, uint8, (H, W)."""
    _check_segmentation(annotation, file_name)
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return polygons_to_bitmask([np.asarray(polygon) for polygon in segmentation], *size).astype(np.uint8)
    mask = mask_util.decode(segmentation)
    if mask.shape != size:
        raise ValueError(f"{file_name} is of size {size}, but the RLE mask of an annotation of {mask.shape}")
    return mask


def _instances(size, boxes, annotations, masks):
    boxes = np.reshape(boxes, (-1, 5)).astype(np.float32)  # (M, 5); Albumentations gives (0, 4) for none
    kept = boxes[:, 4].astype(int)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes[:, :4]))
    instances.gt_classes = torch.tensor([annotations[i]["category_id"] for i in kept], dtype=torch.int64)
    if masks is not None:
        masks = np.array([masks[i] for i in kept], dtype=bool).reshape(-1, *size)
        instances.gt_masks = BitMasks(torch.from_numpy(masks))
    return detection_utils.filter_empty_instances(instances)


def build_mapper(cfg, is_train):
    """The mapper of INPUT.MAPPER.

    Raises:
        ValueError: there is none of that name.
    """
    mappers = {"albumentations": AlbumentationsMapper, "detectron2": CheckedDatasetMapper}
    if cfg.INPUT.MAPPER not in mappers:
        raise ValueError(f"INPUT.MAPPER must be one of {', '.join(mappers)}, got {cfg.INPUT.MAPPER!r}")
    return mappers[cfg.INPUT.MAPPER](cfg, is_train=is_train)
