"""Isometric networks for Detectron2. Importing it registers its models and data sets."""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "iso_d2 needs Detectron2, which is not installed. In a checkout of iso_d2, `make setup` installs it; "
        "elsewhere, after torch: "
        "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git"
    ) from error

__version__ = "0.1.0"

from . import data, modeling

__all__ = ["data", "modeling"]
