"""Whitening of the images by the first convolution of an ISONet."""

import logging

import torch
from detectron2.utils import comm
from torch import distributed

from ..analysis import catch_input
from ..isometry import patch_moments, whiten_
from ..modeling.blocks import Stem

logger = logging.getLogger(__name__)


def stems_to_whiten(model):
    """dict[str, Stem]: those with ``whiten=True`` by name, loaded ones among them."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Stem) and m.whiten}


def whiten_stems_(model, batches, images=512):
    """Set the stem of each ISONet with ``whiten=True`` to whiten what the model makes of the images.

    The gain of the stem is multiplied into its weight. A stem that was loaded stays as it is. Of several
    processes each looks at its own batches, and all get the same weights.

    Args:
        model (nn.Module): the model, without a data-parallel wrapper, in any mode.
        batches (iterable): what the model takes; read once for each stem, until there are enough images.
        images (int): how many to look at, over all processes.

    Raises:
        ValueError: batches of which no image reaches the stem; images that are not finite or all 0.

    Source: :func:`iso_d2.isometry.whiten_`.
    """
    for name, stem in stems_to_whiten(model).items():
        if stem.is_set:
            logger.info("The stem is as it was loaded, and not trained (MODEL.ISONET.WHITEN False trains it)")
            continue
        logger.info("The stem is set to whiten the images: looking at up to %d of them", images)
        conv = stem.conv
        moments, count = _moments(model, stem, batches, images)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            layer = f"{name}.conv".removeprefix(".")
            whiten_(conv.weight, moments, generator=generator, layer=layer).mul_(conv.gain)
            conv.gain = 1.0
            if comm.get_world_size() > 1:  # components have no sign of their own
                distributed.broadcast(conv.weight, 0)
        stem.is_set = True
        logger.info("The stem whitens the images, by %d patches; it is not trained", count)


def _moments(model, stem, batches, images):
    """Tensor (E, E), int: the mean second moments of the patches that a stem reads; their number."""
    conv, seen, parts = stem.conv, 0, []
    for batch in batches:
        inputs = catch_input(model, stem, batch)  # before the stem warns that it is not set
        if inputs is None:
            break
        parts.append(patch_moments(inputs, conv.kernel_size, conv.stride, conv.dilation))
        seen += len(inputs) * comm.get_world_size()
        if seen >= images:
            break
    if not parts:
        raise ValueError("no image reached the stem that is to whiten them: look at the training data")
    total, count = sum(part for part, _ in parts), torch.tensor(float(sum(n for _, n in parts)))
    if comm.get_world_size() > 1:
        total, count = total.to(conv.weight.device), count.to(conv.weight.device)
        for value in (total, count):
            distributed.all_reduce(value)
    return total / count, int(count)
