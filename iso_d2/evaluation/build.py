"""The evaluator that belongs to a data set."""

import os

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from .classification import ClassificationEvaluator
from .visualization import VisualPredictions

# evaluator_type in a data set's metadata -> evaluator of (data set name, output folder)
EVALUATORS = {
    "classification": ClassificationEvaluator,
    "coco": lambda name, folder: COCOEvaluator(name, output_dir=folder),
    "lvis": lambda name, folder: LVISEvaluator(name, output_dir=folder),
    "pascal_voc": lambda name, folder: PascalVOCDetectionEvaluator(name),
    "sem_seg": lambda name, folder: SemSegEvaluator(name, output_dir=folder),
}


def build_evaluator(cfg, dataset_name, output_folder=None):
    """The evaluator of a registered data set, with drawn predictions where the config asks for them.

    Args:
        cfg (CfgNode): TEST.VISUALIZE pictures go to OUTPUT_DIR/visualizations/<data set>.
        dataset_name (str): a registered data set, whose metadata says ``evaluator_type``.
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
    evaluator = EVALUATORS[evaluator_type](dataset_name, folder)
    # A classifier's picture is its confusion matrix.
    if cfg.TEST.VISUALIZE == 0 or evaluator_type == "classification":
        return evaluator
    pictures = os.path.join(cfg.OUTPUT_DIR, "visualizations", dataset_name)
    return DatasetEvaluators([evaluator, VisualPredictions(dataset_name, pictures, cfg.TEST.VISUALIZE)])
