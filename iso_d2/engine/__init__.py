"""Training: the two hooks, parameter groups, checkpoints and a trainer that joins them."""

from .hooks import DeltaInitHook, OrthogonalityLossHook
from .optimizer import build_optimizer
from .trainer import Trainer

__all__ = ["DeltaInitHook", "OrthogonalityLossHook", "Trainer", "build_optimizer"]
