"""Training: the hooks, parameter groups, checkpoints and a trainer that joins them."""

from .. import needs_detectron2  # noqa: F401  first, for its error
from .averaging import AverageHook
from .compilation import CompileHook
from .hooks import DeltaInitHook, IsometryHook, OrthogonalityLossHook, SignalHook, WhiteningHook
from .model_penalty import ModelPenalty, penalised_layers
from .optimizer import build_optimizer
from .trainer import Trainer

__all__ = [
    "AverageHook",
    "CompileHook",
    "DeltaInitHook",
    "IsometryHook",
    "ModelPenalty",
    "OrthogonalityLossHook",
    "SignalHook",
    "Trainer",
    "WhiteningHook",
    "build_optimizer",
    "penalised_layers",
]
