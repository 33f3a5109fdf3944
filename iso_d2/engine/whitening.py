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
    ``data_loader``. Every process takes its share, and all get the same weights. Nothing happens when weights
    were loaded or the training goes on from an earlier one: the stem is then as it was saved.

    Args:
        images (int): how many images to look at, over all processes.
        weights_loaded (bool): the model holds loaded weights; may be set until training starts.

    Raises:
        ValueError: fewer than one image; in :meth:`before_train`, images that are not finite or all 0.

    Source: :func:`iso_d2.isometry.whiten_`.
    """

    def __init__(self, images=512, weights_loaded=False):
        if images < 1:
            raise ValueError(f"WhiteningHook needs at least one image, got {images}")
        self.images = images
        self.weights_loaded = weights_loaded

    def before_train(self):
        model = unwrap(self.trainer.model)
        stems = [module for module in model.modules() if isinstance(module, Stem) and module.whiten]
        if not stems:
            return
        if self.weights_loaded or self.trainer.start_iter > 0:
            logger.info("No whitening of the images: the stem is as it was saved")
            return
        for stem in stems:
            moments, count = self._moments(model, stem.conv)
            whiten_(stem.conv.weight, moments, generator=torch.Generator().manual_seed(0))
            stem.is_set = True
            logger.info("The stem whitens the images, by %d patches; it is not trained", count)

    def _moments(self, model, conv):
        """Tensor (E, E), int: the second moments of what a convolution reads, and how many patches it was."""
        seen, total, count = 0, 0.0, 0
        handle = conv.register_forward_pre_hook(_capture)
        training = model.training
        model.train()
        try:
            for batch in self.trainer.data_loader:
                try:
                    with torch.no_grad():
                        model(batch)
                except _Captured as captured:
                    part, patches = patch_moments(
                        captured.images, conv.kernel_size, conv.stride, conv.dilation
                    )
                    seen += len(captured.images) * comm.get_world_size()
                    total, count = total + part, count + patches
                if seen >= self.images:
                    break
        finally:
            handle.remove()
            model.train(training)
        if comm.get_world_size() > 1:
            count = torch.tensor(float(count), device=total.device)
            for value in (total, count):
                distributed.all_reduce(value)
        return total / count, int(count)


class _Captured(Exception):
    """Leaves the model with what a layer has read; what comes after it is not needed."""

    def __init__(self, images):
        self.images = images


def _capture(module, args):
    raise _Captured(args[0])
