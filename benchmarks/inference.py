"""Inference of R-ISONet and of ResNets, each as it is and folded."""

import copy
from functools import partial

import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from iso_d2.modeling import fold_scales_

from .networks import isonet, norms, resnet
from .options import DTYPES, tf32
from .report import Table
from .timing import compare

# Largest difference of the folded net's features, relative to the largest feature, in float32
TOLERANCE = 1e-5


def fold_norms_(net):
    """Multiply the batch norms of Detectron2's convolutions into their weights and biases, in place.

    The network is in evaluation; other norms stay as they are. Returns the network.
    """
    for conv in net.modules():
        if isinstance(conv, Conv2d) and isinstance(conv.norm, nn.BatchNorm2d):
            norm = conv.norm
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.norm = None
    return net


def folded(net, fold, images):
    """A copy of a backbone in evaluation, folded, and how far that moves its features for float32 images.

    The second is relative to the largest feature. A RuntimeError says that it is more than TOLERANCE.
    """
    copied = fold(copy.deepcopy(net))
    # TF32 would round other weights to other values
    with torch.no_grad(), tf32(False):
        before, after = (list(some(images).values())[-1] for some in (net, copied))
    difference = ((after - before).abs().max() / before.abs().max()).item()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"folding moves the features by {difference:.1e}, more than {TOLERANCE}")
    return copied, difference


@torch.no_grad()
def measure_inference(options, seconds):
    """The part "inference": list[Table]. A folded net that gives other features is a RuntimeError."""
    images = options.images()
    iso = isonet(options).eval()
    resnets = {norm: resnet(options, norm) for norm in norms(options)}
    resnets["BN"](images)  # in training: moves the statistics off 0 and 1, which would fold to little
    resnets = {norm: net.eval() for norm, net in resnets.items()}
    iso_folded, difference = folded(iso, fold_scales_, images)
    bn_folded, bn_difference = folded(resnets["BN"], fold_norms_, images)
    ours = f"R-ISONet-{options.depth} folded"
    nets = {
        ours: iso_folded,
        f"R-ISONet-{options.depth}": iso,
        f"ResNet-{options.depth} BN folded": bn_folded,
    }
    nets |= {f"ResNet-{options.depth} {norm}": net for norm, net in resnets.items()}
    dtype = DTYPES[options.dtype]
    images = images.to(dtype)
    cases = {name: partial(net.to(dtype), images) for name, net in nets.items()}
    measured = compare(cases, options.repeats, seconds)
    title = (
        f"Inference, {options.describe(images.shape)}; folding moves the features by {difference:.0e}, "
        f"that of batch norms by {bn_difference:.0e}"
    )
    return [Table(title, measured.rows(ours, limits={"ResNet-50 FrozenBN": 1.0}, images=options.batch))]
