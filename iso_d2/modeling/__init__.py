"""Networks, and the builders that importing this package registers with Detectron2."""

from . import backbones, roi_heads
from .blocks import IsoBlock
from .isonet import ISONet

__all__ = ["ISONet", "IsoBlock", "backbones", "roi_heads"]
