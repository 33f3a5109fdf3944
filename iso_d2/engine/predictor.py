"""Predictions of a trained model for image files, read and resized as in its evaluation."""

import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from PIL import Image

from ..data.lgg.preprocessing import Preprocessing
from ..data.mappers import build_mapper
from ..files import read_image, upright_8_bits
from ..modeling import fold_scales_
from ..modeling.segmentor import to_original
from .checkpoint import IsoCheckpointer
from .trainer import Trainer

logger = logging.getLogger(__name__)


class Predictor:
    """Run a model on images with the mapper that evaluation uses (INPUT.ALBUMENTATIONS.TEST).

    If the model was trained on preprocessed slices (lgg, phantom: their metadata have ``image_size``), images
    are cropped to the head and resized in the same way, and the output is mapped back to the original image.

    Args:
        cfg (CfgNode): MODEL.WEIGHTS must name a checkpoint, unless `model` is given.
        model (ExportedModel, SegmentorEnsemble or None): to run in place of the checkpoint's.
        fold (bool): multiply gains and residual scales into the checkpoint's weights.

    Raises:
        ValueError: MODEL.WEIGHTS is empty, or does not fit the model.
        FileNotFoundError: there is no such checkpoint.
    """

    def __init__(self, cfg, model=None, fold=True):
        if model is None and not cfg.MODEL.WEIGHTS:
            raise ValueError(
                "MODEL.WEIGHTS is empty: name a checkpoint, e.g. MODEL.WEIGHTS output/model_final.pth"
            )
        self.model = model
        if model is None:
            self.model = load_network(cfg, cfg.MODEL.WEIGHTS)
            if fold:
                fold_scales_(self.model)
        self.is_unet = cfg.MODEL.META_ARCHITECTURE == "UNetSegmentor"
        self.mapper = build_mapper(cfg, is_train=False)
        self.image_size = None
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            self.image_size = self.image_size or MetadataCatalog.get(name).get("image_size")

    @torch.no_grad()
    def __call__(self, image):
        """The model's output for one image.

        Args:
            image (str, Path or ndarray): an image file; or pixels, uint8 RGB, (3, H, W).

        Returns:
            dict: as the meta-architecture gives it (``instances``, ``sem_seg``), on the CPU where it
            is ``instances``, at the size of the image in the file.

        Raises:
            BrokenImageError: the file cannot be read.
        """
        if isinstance(image, (str, Path)):
            record = {"file_name": str(image)}
        else:
            _, height, width = image.shape
            record = {"image_array": image, "height": height, "width": width}
        if self.image_size is not None:
            image = image.transpose(1, 2, 0) if "image_array" in record else read_image(image, "RGB")
            record["image_array"], placement = Preprocessing(self.image_size)(image)
            original = {"height": image.shape[0], "width": image.shape[1], "placement": placement}
            if self.is_unet:  # which brings its output back by itself
                record |= original
            else:
                record |= {"height": self.image_size, "width": self.image_size}
                output = self.model([self.mapper(record)])[0]
                return {"sem_seg": to_original(output["sem_seg"].softmax(dim=0), original)}
        output = self.model([self.mapper(record)])[0]
        if "instances" in output:
            output["instances"] = output["instances"].to("cpu")
        return output


def load_network(cfg, weights):
    """nn.Module: the network of a config with the weights of a file (str), in inference mode."""
    model = Trainer.build_model(cfg).eval()
    IsoCheckpointer(model).load(weights)
    return model


def rgb_array(image):
    """Any image in memory as the pixels that :class:`Predictor` takes.

    Args:
        image (PIL.Image.Image, ndarray or Tensor): an array is (H, W), (H, W, 1) or (H, W, 3), a tensor
            (1, H, W) or (3, H, W); uint8, or floats from 0 to 1.

    Returns:
        ndarray: uint8, (3, H, W).

    Raises:
        ValueError: another type or shape, no pixels, or values that are not finite or out of range.
    """
    if isinstance(image, Image.Image):
        try:
            pixels = np.asarray(upright_8_bits(image).convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"cannot read the PIL image: {error}") from error
    elif isinstance(image, torch.Tensor):
        pixels = image.detach().cpu().float().numpy() if image.is_floating_point() else image.cpu().numpy()
    elif isinstance(image, np.ndarray):
        pixels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1) if image.ndim == 3 else image
    else:
        raise ValueError(f"an image is a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.size:
        raise ValueError(
            "an array must be (H, W), (H, W, 1) or (H, W, 3), a tensor (1, H, W) or (3, H, W), with pixels, "
            f"got {tuple(image.shape)}"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("an image of floats must have values from 0 to 1, or convert it to uint8")
        pixels = (255 * pixels).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image must be uint8 or floats from 0 to 1, got {pixels.dtype}")
    return np.array(
        np.broadcast_to(pixels, (3, *pixels.shape[1:])), order="C"
    )  # a copy: buffers are used again


def by_class(scores, metadata):
    """dict[str, float]: the scores (sequence of float) of classes, the best first.

    By their names; by numbers if there is not one name for each of them.
    """
    names = metadata.get("thing_classes") or ()
    if len(names) != len(scores) or len(set(names)) != len(names):
        names = [str(number) for number in range(len(scores))]
    return dict(sorted(zip(names, scores, strict=True), key=lambda pair: -pair[1]))


def class_metadata(cfg):
    """Metadata of the first of DATASETS.TEST, with class names if its registration or files hold them."""
    if not cfg.DATASETS.TEST:
        return MetadataCatalog.get("unnamed")
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    if metadata.get("thing_classes") is None:
        try:
            DatasetCatalog.get(cfg.DATASETS.TEST[0])
        except (OSError, KeyError, ValueError) as error:
            logger.warning("No class names, numbers instead: %s", error)
    return metadata


def coco_predictions(predictions, metadata):
    """Detections of some images as one COCO document.

    Args:
        predictions (list): pairs of a file name and Instances with pred_boxes, scores, pred_classes.
        metadata (Metadata): class names and, if the set has them, the ids of its json.

    Returns:
        dict: ``images``, ``annotations`` (each with ``score``; XYWH boxes in pixels; RLE masks if the
        model gives masks) and ``categories``, as pycocotools' COCO reads it.
    """
    ids = {v: k for k, v in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
    names = dict(enumerate(metadata.get("thing_classes") or []))
    images, annotations = [], []
    for image_id, (file_name, instances) in enumerate(predictions, start=1):
        height, width = instances.image_size
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for entry in instances_to_coco_json(instances, image_id):
            names.setdefault(entry["category_id"], str(entry["category_id"]))
            entry["category_id"] = ids.get(entry["category_id"], entry["category_id"] + 1)
            area = entry["bbox"][2] * entry["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **entry, "area": area, "iscrowd": 0})
    categories = [{"id": ids.get(c, c + 1), "name": name} for c, name in sorted(names.items())]
    return {"images": images, "annotations": annotations, "categories": categories}
