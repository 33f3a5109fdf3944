"""How large a model is, and how much it computes for one image."""

import logging
import warnings

import torch
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis

# Height and width of what is fed, by data set, where INPUT.ALBUMENTATIONS.TEST does not resize
SIZES = {"cifar10_train": 32, "cifar100_train": 32, "lgg_train": 224, "lgg_image_train": 224}


def parameters_and_flops(cfg):
    """Count a model's parameters, and its multiply-adds for one image in inference.

    Args:
        cfg (CfgNode): the config; the model is built on the CPU, with random weights.

    Returns:
        tuple: int, and int or None. None: a detector, whose cost depends on what it proposes, or a size
        that is not known.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    levels = {name: logging.getLogger(name).level for name in ("iso_d2", "fvcore", "detectron2")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        model = build_model(cfg).eval()
        size = input_size(cfg)
        flops = None
        if size is not None and cfg.MODEL.META_ARCHITECTURE in ("ImageClassifier", "UNetSegmentor"):
            image = torch.zeros(3, size, size)
            inputs = [{"image": image, "height": size, "width": size}]
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                flops = int(FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).total())
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    return sum(parameter.numel() for parameter in model.parameters()), flops


def input_size(cfg):
    """int or None: side of the square images that the model is fed in inference."""
    first = cfg.DATASETS.TRAIN[0]
    # In memory, images of a classification go through no such pipeline.
    pipeline = () if "cifar" in first and cfg.INPUT.IN_MEMORY else cfg.INPUT.ALBUMENTATIONS.TEST
    resized = [arguments["height"] for name, arguments in pipeline if name == "Resize"]
    return resized[-1] if resized else SIZES.get(first)
