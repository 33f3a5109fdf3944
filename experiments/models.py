"""How large a model is and how much it computes, and the backbone of a trained one."""

import logging
import re
import warnings

import torch
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis

# Side of the images that are fed where INPUT.ALBUMENTATIONS.TEST does not resize, by the data set
SIZES = {"cifar": 32, "lgg": 224}


def parameters_and_flops(cfg):
    """tuple: int, a model's parameters, and int or None, its multiply-adds for one image in inference.

    None: of a detector, whose cost depends on what it proposes, or a size that is not known. The model is
    built on the CPU, with random weights.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    size, flops = input_size(cfg), None
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # nobody wants to read how this model is built
    try:
        model = build_model(cfg).eval()
        if size is not None and cfg.MODEL.META_ARCHITECTURE in ("ImageClassifier", "UNetSegmentor"):
            inputs = [{"image": torch.zeros(3, size, size), "height": size, "width": size}]
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                flops = int(FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).total())
    finally:
        logging.disable(before)
    return sum(parameter.numel() for parameter in model.parameters()), flops


def input_size(cfg):
    """int or None: side of the square images that the model is fed in inference."""
    kind = re.match("[a-z]*", cfg.DATASETS.TRAIN[0])[0]
    # In memory, images of a classification go through no such pipeline.
    pipeline = () if kind == "cifar" and cfg.INPUT.IN_MEMORY else cfg.INPUT.ALBUMENTATIONS.TEST
    resized = [arguments["height"] for name, arguments in pipeline if name == "Resize"]
    return resized[-1] if resized else SIZES.get(kind)


def write_backbone(checkpoint, destination):
    """Write the backbone's weights in an ImageClassifier's checkpoint as one that fits under an FPN, too."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    prefix, head = "backbone.", "backbone.linear."
    backbone = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not name.startswith(head)
    }
    # With these two Detectron2 matches by the ends of the names, whatever comes before them.
    content = {"model": backbone, "__author__": "iso_d2", "matching_heuristics": True}
    torch.save(content, destination)
