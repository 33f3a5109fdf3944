"""Isometric networks for Detectron2. Importing it registers its models and data sets.

Without Detectron2 it registers nothing, and ``iso_d2.isometry`` works alone.
"""

import importlib.util

__version__ = "0.1.0"

if importlib.util.find_spec("detectron2"):
    from . import data, modeling

__all__ = ["data", "modeling"]
