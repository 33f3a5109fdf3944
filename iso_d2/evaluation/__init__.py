"""Evaluators by type of data set, and drawings of what a model predicts."""

from .. import needs_detectron2  # noqa: F401  first, for its error
from .build import build_evaluator
from .classification import ClassificationEvaluator
from .segmentation import SegmentationEvaluator
from .segmentation_pictures import draw_overlay
from .visualization import VisualPredictions, draw_model_input

__all__ = [
    "ClassificationEvaluator",
    "SegmentationEvaluator",
    "VisualPredictions",
    "build_evaluator",
    "draw_model_input",
    "draw_overlay",
]
