"""The isometry of a model at given images: its layers, its signal and gradient by depth, its Jacobian."""

from .. import needs_detectron2  # noqa: F401  first, for its error
from .jacobian import measure_jacobian
from .layers import find_network, measure_convolutions
from .measured_signal import measure_signal, record_signal, signal_faults, signal_table
from .network import catch_input, measure_depth, record_step
from .summary import analyze, describe, jacobian_table

__all__ = [
    "analyze",
    "catch_input",
    "describe",
    "find_network",
    "jacobian_table",
    "measure_convolutions",
    "measure_depth",
    "measure_jacobian",
    "measure_signal",
    "record_signal",
    "record_step",
    "signal_faults",
    "signal_table",
]
