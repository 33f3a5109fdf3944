"""Isometric networks for Detectron2. Importing it registers its models and data sets.

Without Detectron2 it registers nothing, and ``iso_d2.isometry`` works alone.
"""

import importlib.util

__version__ = "0.1.0"

if importlib.util.find_spec("detectron2"):
    from . import data, modeling


def __getattr__(name):
    if name in ("list_models", "load"):
        from .engine import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["data", "list_models", "load", "modeling"]
