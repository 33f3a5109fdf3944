"""COCO-format data sets: reading and checking any of them, and the report's person/bicycle/car subset."""

from . import annotations, chips, subset

__all__ = ["annotations", "chips", "subset"]
