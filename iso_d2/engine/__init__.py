"""Training: the hooks, parameter groups, checkpoints and a trainer that joins them."""

from .hooks import DeltaInitHook, OrthogonalityLossHook
from .isometry_hook import IsometryHook
from .optimizer import build_optimizer
from .trainer import Trainer
from .whitening import WhiteningHook

__all__ = [
    "DeltaInitHook",
    "IsometryHook",
    "OrthogonalityLossHook",
    "Trainer",
    "WhiteningHook",
    "build_optimizer",
]
