"""Scales multiplied into the weights for good, for deployment."""

from collections import Counter

from torch import nn

from ..isometry import ScaledConv2d, ScaledConvTranspose2d, ScaledLinear
from .blocks import IsoBlock

SCALED = (ScaledConv2d, ScaledConvTranspose2d, ScaledLinear)


def fold_scales_(model):
    """Multiply residual scales, gains and metrics into the weights of their convolutions, in place.

    The outputs stay the same to rounding, and nothing is multiplied at each call any more. Load the
    checkpoint first: a folded model has no scales and metrics, its weights are no isometries, and it refuses
    a state dict that still has scales or metrics (a ValueError).

    Args:
        model (nn.Module): any model with isometric blocks or convolutions: a backbone, a UNet, a detector.

    Returns:
        nn.Module: `model`.

    Raises:
        ValueError: a branch does not end with a plain convolution, a weight to be changed has a
            parametrization, weight norm or pruning, or another part of the model uses it. Nothing is changed
            then.
    """
    modules = list(model.modules())
    blocks = {m.branch[-1]: m for m in modules if isinstance(m, IsoBlock) and m.scale is not None}
    scaled = [m for m in modules if isinstance(m, SCALED) and m not in blocks]
    targets = {m: m for m in scaled if m.gain != 1 or getattr(m, "metric", None) is not None} | blocks
    # a block may itself have several names, but then its weights have no more names than the block
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for conv, owner in targets.items():
        _check_plain(conv, owner)
        if any(names[id(p)] > places[id(owner)] for p in conv.parameters()):
            raise ValueError(
                "a weight with a scale is also used elsewhere in the model, without the scale: it cannot be "
                "folded"
            )
    for conv, owner in targets.items():
        scale = [] if owner is conv else [owner.scale.scale.detach()]
        if isinstance(conv, SCALED):
            conv.fold_(*scale)
        else:
            for parameter in conv.parameters():
                parameter.data.mul_(*scale)
        if owner is not conv:
            owner.scale = None
    return model


def _check_plain(conv, owner):
    # a subclass may do more than convolve, as Detectron2's Conv2d with a norm does
    if type(conv) not in (nn.Conv2d, *SCALED):
        raise ValueError(
            f"a scale goes into the weight of a plain convolution, got {type(conv).__name__}: remove its "
            "parametrization first"
        )
    if type(conv) is nn.Conv2d and owner.scale.scale.dim() > 0:
        raise ValueError("scales of single channels go into a ScaledConv2d, got a Conv2d: fold it by hand")
    # hooks of weight norm and pruning compute the weight at each call from other parameters
    if not set(conv._parameters) <= {"weight", "bias", "metric"}:
        raise ValueError(
            "a scale goes into the weight of a plain convolution, got one with the parameters "
            f"{', '.join(conv._parameters)}: remove its weight norm or pruning"
        )
