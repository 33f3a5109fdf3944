"""Isometry of a network during its training, for TensorBoard and metrics.json."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm
from tabulate import tabulate

from ..evaluation.isometry_layers import (
    find_convolutions,
    find_network,
    measure_convolution,
    measure_scales,
    measure_thresholds,
)
from ..evaluation.isometry_network import BlockRecorder
from ..evaluation.isometry_signal import SignalRecorder, signal_faults
from ..isometry import SReLU
from .layers import unwrap

logger = logging.getLogger(__name__)


class IsometryHook(HookBase):
    """Write how far each layer is from an isometry, and signal and gradient by depth, at every n-th step.

    Of the network between image and heads (of an FPN its bottom-up part), with its dotted names:

    - ``isometry/<convolution>_min``, ``_max``, ``_error``: singular values on the smallest circular grid, see
      :func:`iso_d2.evaluation.isometry_layers.smallest_grid`, and max |sigma - 1|;
    - ``isometry/<SReLU>_min``, ``_mean``, ``_max``: its thresholds; ``isometry/<scale>``: a residual scale;
    - ``isometry/<SReLU>_held``: the share, 0 to 1, of its output that is its threshold, and
      ``isometry/<convolution or SReLU>_mean_square`` of its output, in that step;
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
        self._recorder = self._signal = None

    def before_train(self):
        name, self._network = find_network(unwrap(self.trainer.model))
        self._prefix = f"isometry/{name}." if name else "isometry/"
        logger.info("Isometry of %s is written every %d steps", name or "the model", self.period)

    def before_step(self):
        if self.trainer.iter % self.period == 0 and comm.is_main_process():
            self._gradients = {}
            self._recorder = BlockRecorder(self._network, keep=self._keep)
            self._signal = SignalRecorder(self._network)

    def after_step(self):
        if self._recorder is None:
            return
        signals, signal = self._recorder.points, self._signal
        self._detach()
        values = {f"{name}_signal": x / next(iter(signals.values())) for name, x in signals.items()}
        if signals and self._gradients:
            last = self._gradients[list(signals)[-1]]
            values |= {f"{name}_gradient": x / last for name, x in self._gradients.items()}
        values |= {f"{name}_mean_square": x for name, x in signal.mean_squares.items()}
        values |= {f"{name}_held": x for name, x in signal.held.items()}
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
        for recorder in (self._recorder, self._signal):
            if recorder is not None:
                recorder.detach()
        self._recorder = self._signal = None

    def _keep(self, name, x):
        """The root mean square of a block's output; its gradient's norm is kept once it is known."""
        if x.requires_grad:
            x.register_hook(lambda gradient: self._gradients.update({name: gradient.float().norm()}))
        return x.detach().float().square().mean().sqrt()


class SignalHook(HookBase):
    """Log, after the first step, how the signal of an isometric network goes through its layers.

    A table has, of each SReLU, the mean square of its output in that step and the share that it held at its
    threshold. A warning names the SReLUs at which the network is linear or dead, see
    :func:`iso_d2.evaluation.isometry_signal.signal_faults`. Only the main process works, and nothing is done
    for a model without SReLU.
    """

    def __init__(self):
        self._recorder = None

    def before_step(self):
        model = unwrap(self.trainer.model)
        first = self.trainer.iter == self.trainer.start_iter and comm.is_main_process()
        if first and any(isinstance(module, SReLU) for module in model.modules()):
            self._recorder = SignalRecorder(model)

    def after_step(self):
        if self._recorder is None:
            return
        recorder = self._recorder
        self.after_train()
        held = {name: share.item() for name, share in recorder.held.items()}
        rows = [[name, recorder.mean_squares[name].item(), 100 * share] for name, share in held.items()]
        logger.info(
            "Signal in the first step:\n%s",
            tabulate(
                rows, ["output of", "mean square", "held at the threshold (%)"], floatfmt=("", ".3g", ".2f")
            ),
        )
        for fault in signal_faults(held):
            logger.warning(
                "The network is %s. See docs/signal.md; SIGNAL 'scaled' (MODEL.ISONET, MODEL.UNET) keeps the "
                "signal at a size that the thresholds meet.",
                fault,
            )

    def after_train(self):
        if self._recorder is not None:
            self._recorder.detach()
            self._recorder = None
