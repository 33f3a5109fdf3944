"""Whitening of the images by the first convolution, before the first step of a training."""

import logging

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import distributed

from ..isometry.whitening import patch_moments, whiten_
from ..modeling.blocks import Stem
from .layers import unwrap

logger = logging.getLogger(__name__)


class WhiteningHook(HookBase):
    """Set the stem of each ISONet with ``whiten=True`` to whiten the training images.

    Images are taken as the model standardises them, from an iterator of its own over the trainer's
    ``data_loader``; of a generator they are used up. Every process takes its share, and all get the same
    weights. The gain of the stem is multiplied into its weight. A stem that was loaded, by a checkpoint or a
    resumed training, stays as it is.

    Args:
        images (int): how many images to look at, over all processes.

    Raises:
        ValueError: fewer than one image; in :meth:`before_train`, a model that gives the stem no images in
            training, images that are not finite or all 0.

    Source: :func:`iso_d2.isometry.whiten_`.
    """

    def __init__(self, images=512):
        if images < 1:
            raise ValueError(f"WhiteningHook needs at least one image, got {images}")
        self.images = images

    def before_train(self):
        model = unwrap(self.trainer.model)
        for stem in [module for module in model.modules() if isinstance(module, Stem) and module.whiten]:
            if stem.is_set:
                logger.info(
                    "The stem is as it was loaded, and not trained (MODEL.ISONET.WHITEN False trains it)"
                )
                continue
            logger.info("The stem is set to whiten the images: looking at %d of them", self.images)
            conv = stem.conv
            moments, count = self._moments(model, conv)
            with torch.no_grad():
                whiten_(conv.weight, moments, generator=torch.Generator().manual_seed(0)).mul_(conv.gain)
                conv.gain = 1.0
                if comm.get_world_size() > 1:  # components have no sign of their own
                    distributed.broadcast(conv.weight, 0)
            stem.is_set = True
            logger.info("The stem whitens the images, by %d patches; it is not trained", count)

    def _moments(self, model, conv):
        """Tensor (E, E), int: the second moments of what a convolution reads, and how many patches it was."""
        seen, parts = 0, []
        handle = conv.register_forward_pre_hook(_capture)
        try:
            for batch in self.trainer.data_loader:
                try:
                    with torch.no_grad():
                        model(batch)
                except _Captured as captured:
                    images = captured.images
                else:
                    break
                parts.append(patch_moments(images, conv.kernel_size, conv.stride, conv.dilation))
                seen += len(images) * comm.get_world_size()
                if seen >= self.images:
                    break
        finally:
            handle.remove()
            # Detectron2's grouping by aspect ratio keeps images for the next batch, of any iterator
            for bucket in getattr(self.trainer.data_loader, "_buckets", ()):
                bucket.clear()
        if not parts:
            raise ValueError("no image reached the stem that is to whiten them: look at the training data")
        total, count = sum(part for part, _ in parts), torch.tensor(float(sum(n for _, n in parts)))
        if comm.get_world_size() > 1:
            total, count = total.to(conv.weight.device), count.to(conv.weight.device)
            for value in (total, count):
                distributed.all_reduce(value)
        return total / count, int(count)


class _Captured(Exception):
    """Leaves the model with what a layer has read; what comes after it is not needed."""

    def __init__(self, images):
        self.images = images


def _capture(module, args):
    raise _Captured(args[0])
