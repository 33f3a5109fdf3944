"""Isometric layers and the mathematics of isometric convolutions. Needs nothing but torch."""

from .activation import SharedScale, SReLU
from .initialization import delta_init_
from .orthogonality import (
    conv_gram,
    orthogonality_loss,
    orthogonality_losses,
    orthogonality_multiply_adds,
)
from .spectrum import conv_singular_values, isometry_error

__all__ = [
    "SReLU",
    "SharedScale",
    "conv_gram",
    "conv_singular_values",
    "delta_init_",
    "isometry_error",
    "orthogonality_loss",
    "orthogonality_losses",
    "orthogonality_multiply_adds",
]
