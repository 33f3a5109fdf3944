"""Inference of R-ISONet, as it is and folded, against the frozen-BN ResNet."""

import copy

import torch

from ..modeling import fold_scales_
from .networks import isonet, norms, resnet
from .options import DTYPES
from .report import Table
from .step import ratio_rows
from .timing import compare

# Largest difference of the folded net's features, relative to the largest feature, in float32
TOLERANCE = 1e-5


def fold_difference(net, images):
    """How far folding the scales moves the features, relative to the largest one.

    Args:
        net (ISONet): it is left as it is.
        images (Tensor): (N, 3, H, W).

    Returns:
        float
    """
    with torch.no_grad():
        before = list(net(images).values())[-1]
        after = list(fold_scales_(copy.deepcopy(net))(images).values())[-1]
    return ((after - before).abs().max() / before.abs().max()).item()


def measure_inference(options, seconds):
    """The part "inference": list[Table].

    Raises:
        RuntimeError: the folded net gives other features.
    """
    images = options.images()
    iso = isonet(options).eval()
    difference = fold_difference(iso, images)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"folding moves the features by {difference:.1e}, more than {TOLERANCE}")
    folded = f"R-ISONet-{options.depth} folded"
    nets = {folded: fold_scales_(copy.deepcopy(iso)), f"R-ISONet-{options.depth}": iso}
    nets |= {f"ResNet-{options.depth} {norm}": resnet(options, norm).eval() for norm in norms(options)}
    dtype = DTYPES[options.dtype]
    images = images.to(dtype)

    def inference(net):
        net.to(dtype)

        def run():
            with torch.no_grad():
                net(images)

        return run

    cases = {name: inference(net) for name, net in nets.items()}
    measured = compare(cases, options.repeats, seconds, options.device)
    rows = ratio_rows(measured, folded, {"ResNet-50 FrozenBN": 1.0})
    for row in rows:
        row["images / s"] = 1000 * options.batch / row["ms"]["median"]
    size = "x".join(map(str, images.shape))
    layout = ", channels last" if options.channels_last else ""
    title = f"Inference, {size} {options.dtype}{layout}; folding moves the features by {difference:.0e}"
    return [Table(title, rows)]
