"""Isometric layers and the mathematics of isometric convolutions. Needs nothing but torch."""

from .activation import SharedScale, SReLU, srelu_gain, srelu_mean_square, use_triton_srelu
from .initialization import centre_, delta_init_, orthogonal_init_
from .isometrize import IsometrizeReport, isometrize
from .model import delta_init_model_, find_convolutions
from .orthogonality import (
    conv_gram,
    orthogonality_loss,
    orthogonality_losses,
    orthogonality_multiply_adds,
)
from .scaled import ScaledConv2d, ScaledConvTranspose2d, ScaledLinear, conv_gain
from .spectral import SpectralPenalty
from .spectrum import conv_singular_values, isometry_error
from .whitening import patch_moments, whiten_

__all__ = [
    "IsometrizeReport",
    "SReLU",
    "ScaledConv2d",
    "ScaledConvTranspose2d",
    "ScaledLinear",
    "SharedScale",
    "SpectralPenalty",
    "centre_",
    "conv_gain",
    "conv_gram",
    "conv_singular_values",
    "delta_init_",
    "delta_init_model_",
    "find_convolutions",
    "isometrize",
    "isometry_error",
    "orthogonal_init_",
    "orthogonality_loss",
    "orthogonality_losses",
    "orthogonality_multiply_adds",
    "patch_moments",
    "srelu_gain",
    "srelu_mean_square",
    "use_triton_srelu",
    "whiten_",
]
