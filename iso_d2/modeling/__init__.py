"""Networks, and the builders that importing this package registers with Detectron2."""

from .. import needs_detectron2  # noqa: F401  first, for its error
from . import backbones, cifar_resnet, roi_heads
from .backbones import isometrize
from .blocks import IsoBlock
from .classifier import ImageClassifier
from .folding import fold_scales_
from .isonet import ISONet
from .segmentor import SegmentorEnsemble, UNetSegmentor
from .unet import UNet

__all__ = [
    "ISONet",
    "ImageClassifier",
    "IsoBlock",
    "SegmentorEnsemble",
    "UNet",
    "UNetSegmentor",
    "backbones",
    "cifar_resnet",
    "fold_scales_",
    "isometrize",
    "roi_heads",
]
