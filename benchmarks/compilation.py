"""A training step with the network as it is, and compiled as MODEL.COMPILE has it."""

import dataclasses

import torch

from .networks import detection_batch, load_model, training_step
from .report import Table
from .timing import clock, compare

# What is compiled, its config and KEY VALUE pairs, images a step and their size
CASES = {
    "classifier": ("cifar/risonet18_cifar10.yaml", ["MODEL.ISONET.DEPTH", 20], 64, (32, 32)),
    "ISO-UNet": ("quick/isounet_narrow_lgg.yaml", [], 8, (112, 112)),
    "detector": ("risonet18_frcnn_fpn.yaml", [], 2, (256, 256)),
}


def measure_compilation(options, seconds):
    """The part "compile": list[Table], of a classifier, an ISO-UNet and a detector."""
    return [_measure(name, options, seconds / len(CASES)) for name in CASES]


def _measure(name, options, seconds):
    config, opts, images, size = CASES[name]
    options = dataclasses.replace(options, detector_batch=images, detector_size=size)
    steps = {}
    for form in ("as it is", "compiled"):
        model, cfg = load_model(config, options, opts)
        if name == "detector":
            batch = detection_batch(options, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        else:
            shape, classes = ((), 10) if name == "classifier" else (size, 2)
            pixels = torch.randint(256, (images, 3, *size), dtype=torch.uint8)
            batch = {"images": pixels, "labels": torch.randint(classes, (images, *shape))}
        steps[form] = training_step(model, options, batch)
    network = getattr(model, "unet", getattr(model, "backbone", None))
    network.forward = torch.compile(network.forward)
    started = clock()
    steps["compiled"]()
    first = clock() - started
    rows = compare(steps, options.repeats, seconds).rows("compiled")
    for row in rows:
        row["first step (s)"] = first if row["network"] == "compiled" else None
    title = f"{name} ({config}): training step (forward, backward), {images}x3x{size[0]}x{size[1]}"
    return Table(title, rows)
