"""Isometry of a network during its training, for TensorBoard and metrics.json."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..evaluation.isometry_layers import (
    find_convolutions,
    find_network,
    measure_convolution,
    measure_scales,
    measure_thresholds,
)
from ..evaluation.isometry_network import BlockRecorder

logger = logging.getLogger(__name__)


class IsometryHook(HookBase):
    """Write how far each layer is from an isometry, and signal and gradient by depth, at every n-th step.

    Of the network between image and heads (of an FPN its bottom-up part), with its dotted names:

    - ``isometry/<convolution>_min``, ``_max``, ``_error``: singular values on the smallest circular grid, see
      :func:`iso_d2.evaluation.isometry_layers.smallest_grid`, and max |sigma - 1|;
    - ``isometry/<SReLU>_min``, ``_mean``, ``_max``: its thresholds; ``isometry/<scale>``: a residual scale;
    - ``isometry/<block>_signal``: root mean square of the block's output in that step, by that of the stem's
      output or, without a stem, of the input;
    - ``isometry/<block>_gradient``: norm of the gradient of the loss in the block's output, by that in the
      last block's. Where heads read several stages it comes in at each of them.

    Signal and gradient are those of the training step itself and cost no pass of their own; the singular
    values, of the weights after it, cost a quarter of a minute for a ResNet-50 on one CPU core. Only the main
    process works.

    Args:
        period (int): steps; the first one is among them.

    Raises:
        ValueError: period below 1; in :meth:`before_train`, a model without convolutions.
    """

    def __init__(self, period):
        if period < 1:
            raise ValueError(f"IsometryHook period must be at least 1 (every step), got {period}")
        self.period = period
        self._recorder = None

    def before_train(self):
        model = self.trainer.model
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        name, self._network = find_network(model)
        self._prefix = f"isometry/{name}." if name else "isometry/"
        logger.info("Isometry of %s is written every %d steps", name or "the model", self.period)

    def before_step(self):
        if self.trainer.iter % self.period == 0 and comm.is_main_process():
            self._gradients = {}
            self._recorder = BlockRecorder(self._network, keep=self._keep)

    def after_step(self):
        if self._recorder is None:
            return
        signals = self._recorder.points
        self._detach()
        values = {f"{name}_signal": x / next(iter(signals.values())) for name, x in signals.items()}
        if signals and self._gradients:
            last = self._gradients[list(signals)[-1]]
            values |= {f"{name}_gradient": x / last for name, x in self._gradients.items()}
        for name, conv in find_convolutions(self._network).items():
            layer = measure_convolution(conv)
            values[f"{name}_min"], values[f"{name}_max"] = layer["sigma_min"], layer["sigma_max"]
            values[f"{name}_error"] = layer["isometry_error"]
        for name, thresholds in measure_thresholds(self._network).items():
            values |= {f"{name}_{which}": value for which, value in thresholds.items()}
        values |= measure_scales(self._network)
        for name, value in values.items():
            self.trainer.storage.put_scalar(self._prefix + name, float(value), smoothing_hint=False)

    def after_train(self):
        self._detach()

    def _detach(self):
        if self._recorder is not None:
            self._recorder.detach()
            self._recorder = None

    def _keep(self, name, x):
        """The root mean square of a block's output; its gradient's norm is kept once it is known."""
        if x.requires_grad:
            x.register_hook(lambda gradient: self._gradients.update({name: gradient.float().norm()}))
        return x.detach().float().square().mean().sqrt()
