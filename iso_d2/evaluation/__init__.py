"""Evaluators by type of data set, and drawings of what a model predicts."""

from .build import build_evaluator
from .visualization import VisualPredictions

__all__ = ["VisualPredictions", "build_evaluator"]
