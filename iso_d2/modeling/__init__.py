"""Networks, and the builders that importing this package registers with Detectron2."""

from . import backbones, cifar_resnet, classifier, roi_heads
from .blocks import IsoBlock
from .classifier import ImageClassifier
from .isonet import ISONet

__all__ = ["ISONet", "ImageClassifier", "IsoBlock", "backbones", "cifar_resnet", "classifier", "roi_heads"]
