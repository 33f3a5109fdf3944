"""Delta initialisation, penalty, whitening and analysis as hooks of any Detectron2 trainer."""

import contextlib
import logging
from collections.abc import Mapping

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..analysis import find_network, record_signal, record_step, signal_faults, signal_table
from ..isometry import SReLU
from ..isometry.model import count_by_module, delta_init_model_, find_convolutions, unwrap
from .model_penalty import ModelPenalty, check_penalty
from .stem_whitening import stems_to_whiten, whiten_stems_

logger = logging.getLogger(__name__)


class DeltaInitHook(HookBase):
    """Delta-initialise chosen convolutions before the first step of a training from scratch.

    :func:`iso_d2.isometry.delta_init_model_` says what becomes of them. Nothing happens when weights were
    loaded or the training goes on from an earlier one.

    Args:
        include (sequence of str): patterns of the modules to initialise.
        weights_loaded (bool): the model holds loaded weights; may be set until training starts.

    Raises:
        ValueError: in :meth:`before_train`, a pattern that matches no convolution.
    """

    def __init__(self, include, weights_loaded=False):
        self.include = include
        self.weights_loaded = weights_loaded

    def before_train(self):
        if self.weights_loaded or self.trainer.start_iter > 0:
            why = "weights were loaded" if self.weights_loaded else "the training was resumed"
            logger.info("No delta initialisation: %s", why)
            return
        fates = delta_init_model_(unwrap(self.trainer.model), self.include)
        kept = [name for name, fate in fates.items() if fate == "kept"]
        logger.info(
            "Delta initialisation of %d convolutions: %s; %d at the end of a residual branch are 0; "
            "7x7 kernels left as they are: %s",
            len(fates) - len(kept),
            count_by_module(fates),
            list(fates.values()).count("zero"),
            ", ".join(kept) or "none",
        )


class OrthogonalityLossHook(HookBase):
    """Add the orthogonality penalty of chosen convolutions to the losses of the model.

        loss_ortho = gamma * n * sum_l L(W_l)    at every n-th step (n the period), else nothing

    with L of :func:`iso_d2.isometry.orthogonality_loss`; over n steps its mean is gamma * sum_l L(W_l).
    It travels in the loss dict, so backward, gradient clipping, AMP scaling, the NaN check and the writers
    treat it like any other loss. :class:`~iso_d2.engine.ModelPenalty` computes it, and divides the work among
    the processes of DistributedDataParallel.

    In the log, ``loss_ortho`` shows the steps that have it, thus n times the mean. ``total_loss``, a median
    over 20 steps, shows from a period of 3 on the steps without it: the other losses alone. ``ortho/total``
    is sum_l L(W_l), without gamma and n, and ``ortho/<layer>`` is L(W_l).

    Args:
        coeff (float): gamma.
        mode, include, exclude, fraction, bound, precision: as of :class:`~iso_d2.engine.ModelPenalty`, which
            also says which layers it takes by default.
        period (int): penalise every n-th step with n times the coefficient, which costs 1/n.
        log_period (int): write ``ortho/...`` at the first penalised step of every so many; 0: never.

    Raises:
        ValueError: an argument out of range; in :meth:`before_train`, a pattern that matches no convolution,
            or no `include` for a model without ISONet, UNet and ``backbone``.
    """

    def __init__(
        self,
        coeff,
        mode="paper",
        include=None,
        exclude=(),
        period=1,
        log_period=100,
        fraction=1.0,
        bound=1.3,
        precision="float32",
    ):
        if period < 1:
            raise ValueError(f"OrthogonalityLossHook period must be at least 1 (every step), got {period}")
        if log_period < 0:
            raise ValueError(f"OrthogonalityLossHook log_period must be >= 0 (0: never), got {log_period}")
        check_penalty(coeff, mode, fraction, bound, precision)
        self.coeff, self.mode, self.fraction, self.bound = coeff, mode, fraction, bound
        self.precision = precision
        self.include, self.exclude = include, exclude
        self.period, self.log_period = period, log_period
        self.penalty = None
        self._gathered = []
        self._handles = contextlib.ExitStack()

    def before_train(self):
        options = (self.mode, self.include, self.exclude, self.fraction, self.bound, self.precision)
        self.penalty = ModelPenalty(self.trainer.model, self.coeff, *options)
        if comm.get_rank() < len(self._gathered):
            self.penalty.load_state_dict(self._gathered[comm.get_rank()])
        model, layers = unwrap(self.trainer.model), self.penalty.layers
        left = [name for name in find_convolutions(model) if name not in layers]
        logger.info(
            "Orthogonality penalty (%s, gamma %g, every %d steps) on %d convolutions: %s; left out %d: %s",
            self.mode,
            self.coeff,
            self.period,
            len(layers),
            count_by_module(layers),
            len(left),
            count_by_module(left),
        )
        if layers:
            self._handles.enter_context(model.register_forward_hook(self._add_loss))
        else:
            logger.warning("The orthogonality penalty has no layer to act on: all are excluded or frozen")

    def gather_state(self):
        """Collect the penalty's state of all processes for the next `state_dict`, called in all of them."""
        self._gathered = comm.all_gather(self.penalty.state_dict())

    def state_dict(self):
        alone = self.penalty is not None and self.penalty.processes == 1
        return {"processes": [self.penalty.state_dict()] if alone else self._gathered}

    def load_state_dict(self, state):
        self._gathered = state.get("processes", [])

    def after_train(self):
        self._handles.close()

    def _add_loss(self, model, _, output):
        # Without gradients it is no training step: PreciseBN runs the model in training mode, too.
        if not model.training or not torch.is_grad_enabled() or self.trainer.iter % self.period != 0:
            return None
        # A step in several parts has it once, in the last of them, whose gradient counts as one part's.
        stepper = getattr(self.trainer, "_trainer", self.trainer)
        part, parts = getattr(stepper, "part", 0), getattr(stepper, "parts", 1)
        if part + 1 < parts:
            return None
        loss, values = self.penalty()
        loss = self.period * loss
        storage = self.trainer.storage
        if self.log_period and self.trainer.iter % self.log_period < self.period:
            shares = self._gather(dict(zip(self.penalty.convs, values.tolist(), strict=True)))
            by_layer = {name: value for share in shares for name, value in share.items()}
            for name, value in by_layer.items():
                storage.put_scalar(f"ortho/{name}", value, smoothing_hint=False)
            storage.put_scalar("ortho/total", sum(by_layer.values()), smoothing_hint=False)
        if isinstance(output, torch.Tensor):
            # Detectron2 writes no parts of a loss that comes as one tensor.
            storage.put_scalar("loss_ortho", sum(self._gather(loss.item())) / self.penalty.processes)
            return output + parts * loss
        if not isinstance(output, Mapping):
            raise TypeError(
                "OrthogonalityLossHook needs a model that returns a dict of losses or a loss tensor in "
                f"training, {type(model).__name__} returned {type(output).__name__}"
            )
        return {**output, "loss_ortho": output.get("loss_ortho", 0.0) + parts * loss}

    def _gather(self, value):
        """A list of the values of all processes, in the first of them."""
        return comm.gather(value) if self.penalty.processes > 1 else [value]


class WhiteningHook(HookBase):
    """Set the stem of each ISONet with ``whiten=True`` to whiten the training images, before the first step.

    Images come from an iterator of its own over the trainer's ``data_loader``; of a generator they are used
    up. See :func:`~iso_d2.engine.stem_whitening.whiten_stems_`. Without such a stem nothing is read.

    Args:
        images (int): how many images to look at, over all processes.

    Raises:
        ValueError: fewer than one image; in :meth:`before_train`, a model that gives the stem no images in
            training, images that are not finite or all 0.
    """

    def __init__(self, images=512):
        if images < 1:
            raise ValueError(f"WhiteningHook needs at least one image, got {images}")
        self.images = images

    def before_train(self):
        model = unwrap(self.trainer.model)
        if not stems_to_whiten(model):
            return
        try:
            whiten_stems_(model, self.trainer.data_loader, self.images)
        finally:
            # Detectron2's grouping by aspect ratio keeps images for the next batch, of any iterator
            for bucket in getattr(self.trainer.data_loader, "_buckets", ()):
                bucket.clear()


class IsometryHook(HookBase):
    """Write how far each layer is from an isometry, and signal and gradient by depth, at every n-th step.

    They are those of :func:`iso_d2.analysis.record_step`, of the network between image and heads (of an FPN
    its bottom-up part), under ``isometry/`` and the dotted name in the model. Singular values cost a quarter
    of a minute for a ResNet-50 on one CPU core; the rest costs no pass of its own. Only the main process
    works.

    Args:
        period (int): steps; the first one is among them.

    Raises:
        ValueError: period below 1; in :meth:`before_train`, a model without convolutions.
    """

    def __init__(self, period):
        if period < 1:
            raise ValueError(f"IsometryHook period must be at least 1 (every step), got {period}")
        self.period = period
        self._values = None
        self._recording = contextlib.ExitStack()

    def before_train(self):
        name, self._network = find_network(unwrap(self.trainer.model))
        self._prefix = f"isometry/{name}." if name else "isometry/"
        logger.info("Isometry of %s is written every %d steps", name or "the model", self.period)

    def before_step(self):
        if self.trainer.iter % self.period == 0 and comm.is_main_process():
            self._values = self._recording.enter_context(record_step(self._network))

    def after_step(self):
        if self._values is not None:
            for name, value in self._values().items():
                self.trainer.storage.put_scalar(self._prefix + name, value, smoothing_hint=False)
            self.after_train()

    def after_train(self):
        self._recording.close()
        self._values = None


class SignalHook(HookBase):
    """Log, after the first step, how the signal of an isometric network goes through its layers.

    The table is :func:`iso_d2.analysis.signal_table`. A warning names the SReLUs at which the network is
    linear or dead, see :func:`iso_d2.analysis.signal_faults`. Only the main process works, and nothing is
    done for a model without SReLU.
    """

    def __init__(self):
        self._signal = None
        self._recording = contextlib.ExitStack()

    def before_step(self):
        model = unwrap(self.trainer.model)
        first = self.trainer.iter == self.trainer.start_iter and comm.is_main_process()
        if first and any(isinstance(module, SReLU) for module in model.modules()):
            self._signal = self._recording.enter_context(record_signal(model))

    def after_step(self):
        if self._signal is None:
            return
        logger.info("Signal in the first step:\n%s", signal_table(self._signal))
        for fault in signal_faults(self._signal):
            logger.warning(
                "The network is %s. See docs/signal.md; SIGNAL 'scaled' (MODEL.ISONET, MODEL.UNET) keeps the "
                "signal at a size that the thresholds meet.",
                fault,
            )
        self.after_train()

    def after_train(self):
        self._recording.close()
        self._signal = None
