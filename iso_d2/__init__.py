"""Isometric networks for Detectron2. Importing it registers its models and data sets.

Without Detectron2 it registers nothing, and ``iso_d2.isometry`` works alone.
"""

import importlib.util

__version__ = "0.1.0"

# a folder of that name, such as a clone that is not installed, has no origin
if (_found := importlib.util.find_spec("detectron2")) and _found.origin:
    from . import data, modeling


def __getattr__(name):
    if name in ("data", "modeling"):
        return importlib.import_module(f".{name}", __name__)  # says how to get Detectron2
    if name in ("list_models", "load"):
        from .engine import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["data", "list_models", "load", "modeling"]
