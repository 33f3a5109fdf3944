"""The evaluator that belongs to a data set."""

import os

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from PIL import Image

from .classification import ClassificationEvaluator
from .segmentation import SegmentationEvaluator
from .visualization import VisualPredictions

# evaluator_type in a data set's metadata -> evaluator of (config, data set name, output folder)
EVALUATORS = {
    "classification": lambda cfg, name, folder: ClassificationEvaluator(
        name, folder, _pictures(cfg, name), cfg.TEST.VISUALIZE, cfg.INPUT.FORMAT
    ),
    "coco": lambda cfg, name, folder: COCOEvaluator(name, output_dir=folder),
    "lvis": lambda cfg, name, folder: LVISEvaluator(name, output_dir=folder),
    "medical_segmentation": lambda cfg, name, folder: SegmentationEvaluator(
        name,
        folder,
        pictures_folder=_pictures(cfg, name),
        num_pictures=cfg.TEST.VISUALIZE,
        **{key.lower(): value for key, value in cfg.TEST.SEGMENTATION.items()},
    ),
    "pascal_voc": lambda cfg, name, folder: PascalVOCDetectionEvaluator(name),
    "sem_seg": lambda cfg, name, folder: SemSegEvaluator(
        name, output_dir=folder, sem_seg_loading_fn=read_labels
    ),
}
# What they measure, as in metrics.json; * stands for anything, such as the name of a class
_OF_BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP-*")
_PER_SLICE = ("dice_loss", "mean_iou", "slice_dice", "slice_iou")
METRICS = {
    "classification": ("classification/top1", "classification/top5", "classification/loss"),
    "coco": tuple(f"{task}/{name}" for task in ("bbox", "segm", "keypoints") for name in _OF_BOXES),
    "lvis": tuple(
        f"{task}/{name}" for task in ("bbox", "segm") for name in (*_OF_BOXES, "APr", "APc", "APf")
    ),
    "medical_segmentation": tuple(
        f"segmentation/{name}"
        for name in (
            *(f"{measure}{which}" for which in ("", "_tumour") for measure in _PER_SLICE),
            *(f"volume_dice_{what}" for what in ("mean", "median", "q1", "q3", "min")),
            *("detection_rate", "false_alarm_rate", "hd95_mean", "hd95_median"),
        )
    ),
    "pascal_voc": ("bbox/AP", "bbox/AP50", "bbox/AP75"),
    "sem_seg": ("sem_seg/*",),
}
# Those that make their own drawings: a confusion matrix, patients
DRAWING = ("classification", "medical_segmentation")


def read_labels(path, dtype):
    """A label image of one channel as an array (H, W); Detectron2's own function fails with NumPy 2."""
    with Image.open(path) as image:
        return np.array(image, dtype)


def build_evaluator(cfg, dataset_name, output_folder=None):
    """The evaluator of a registered data set, with drawn predictions if the config asks for them.

    Args:
        cfg (CfgNode): TEST.VISUALIZE pictures go to OUTPUT_DIR/visualizations/<data set>.
        dataset_name (str): a registered data set, whose metadata have an ``evaluator_type``.
        output_folder (str or None): for predictions; None: OUTPUT_DIR/inference/<data set>.

    Returns:
        DatasetEvaluator

    Raises:
        ValueError: the data set's ``evaluator_type`` is unknown or absent.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in EVALUATORS:
        raise ValueError(
            f"Data set {dataset_name!r} has evaluator_type {evaluator_type!r}, accepted are "
            f"{', '.join(EVALUATORS)}. Set it where the data set is registered: "
            f"MetadataCatalog.get({dataset_name!r}).evaluator_type = ..."
        )
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    evaluator = EVALUATORS[evaluator_type](cfg, dataset_name, folder)
    if cfg.TEST.VISUALIZE == 0 or evaluator_type in DRAWING:
        return evaluator
    pictures = VisualPredictions(dataset_name, _pictures(cfg, dataset_name), cfg.TEST.VISUALIZE)
    return DatasetEvaluators([evaluator, pictures])


def possible_metrics(dataset_names, has_spacing=True):
    """list[str]: patterns of the metrics that an evaluation of some data sets can have.

    `has_spacing` (bool): TEST.SEGMENTATION.SPACING is given, so that slices have distances.
    Those of several data sets begin with the data set's name, ``cifar10_test/classification/top1``.
    """
    several = len(dataset_names) > 1
    return [
        f"{name}/{metric}" if several else metric
        for name in dataset_names
        for metric in METRICS[MetadataCatalog.get(name).evaluator_type]
        if has_spacing or "hd95" not in metric
    ]


def _pictures(cfg, dataset_name):
    return os.path.join(cfg.OUTPUT_DIR, "visualizations", dataset_name)
