"""Delta initialisation and the orthogonality penalty as hooks of any Detectron2 trainer.

Both name layers by the patterns of ``layers.py``.

Source: Qi et al., Deep Isometric Learning for Visual Recognition, ICML 2020, Section 3.
"""

import logging
import math
from collections.abc import Mapping

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..isometry import SpectralPenalty, delta_init_, orthogonality_losses, orthogonality_multiply_adds
from .layers import branch_ends, default_layers, find_convolutions, select, summary, unwrap

logger = logging.getLogger(__name__)


class DeltaInitHook(HookBase):
    """Delta-initialise chosen convolutions before the first step of a training from scratch.

    Kernels become delta kernels and biases 0. In a residual block x + f(x) without normalization the
    last convolution of f becomes 0 instead, so that the block starts as its shortcut: with a delta
    there, every block would double the signal. Blocks with a SharedScale need no zero, their scale
    is one already. 7x7 kernels stay as they are, as in the paper's code, and so do linear layers.

    Nothing happens when weights were loaded or the training goes on from an earlier one.

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
        model = unwrap(self.trainer.model)
        convs = find_convolutions(model)
        names = select(convs, self.include)
        ends = branch_ends(model)
        kept = [name for name in names if convs[name].kernel_size == (7, 7)]
        zeroed = [name for name in names if convs[name] in ends and name not in kept]
        for name in names:
            if name in kept:
                continue
            conv = convs[name]
            if name in zeroed:
                nn.init.zeros_(conv.weight)
            else:
                # Without the stride: the plain delta of the paper, at which its penalty is 0.
                delta_init_(conv.weight, groups=conv.groups, transposed=isinstance(conv, nn.ConvTranspose2d))
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        logger.info(
            "Delta initialisation of %d convolutions: %s; %d at the end of a residual branch are 0; "
            "7x7 kernels left as they are: %s",
            len(names) - len(kept),
            summary(names),
            len(zeroed),
            ", ".join(kept) or "none",
        )


class OrthogonalityLossHook(HookBase):
    """Add the orthogonality penalty of chosen convolutions to the losses of the model.

        loss_ortho = gamma * n * sum_l L(W_l)    at every n-th step (n the period), else nothing

    with L of :func:`iso_d2.isometry.orthogonality_loss`; over n steps its mean is gamma * sum_l L(W_l).
    It travels in the loss dict, so backward, gradient clipping, AMP scaling, the NaN check and the
    writers treat it like any other loss. Under autocast, too, it is computed in float32.

    In the log, ``loss_ortho`` shows the steps that have it, thus n times the mean, and ``total_loss``,
    a median over 20 steps, shows from a period of 3 on the steps without it: the other losses alone.
    ``ortho/total`` is sum_l L(W_l), without gamma and n, and ``ortho/<layer>`` is L(W_l).

    Under DistributedDataParallel each of P processes takes a share of the layers, of about the same cost,
    with P times the coefficient. Their mean, which is what becomes of the gradients there, and of losses in
    Detectron2's log, is the whole penalty; so its cost falls with P.

    Args:
        coeff (float): gamma.
        mode (str): "paper" or "exact", see :func:`iso_d2.isometry.orthogonality_loss`; or "spectral", see
            :class:`iso_d2.isometry.SpectralPenalty`.
        include (sequence of str or None): patterns of the layers to penalise. None: the convolutions
            of every ISONet, IsoBlock and UNet; in a model without them those of ``model.backbone``, but
            not an FPN's own; of these all but 7x7 kernels and 3-channel inputs, where they have no gain, and,
            like the linear layer of a classifier, UNet's output, as in the paper's code. A UNet that is not
            isometric counts, too.
        exclude (sequence of str): patterns of layers to leave out. Frozen ones are left out anyway.
        period (int): penalise every n-th step with n times the coefficient, which costs 1/n.
        log_period (int): write ``ortho/...`` at the first penalised step of every so many; 0: never.
        fraction (float): of the frequencies of each kernel, drawn at random at each step, as of
            :func:`iso_d2.isometry.orthogonality_losses`; 1 is exact, less is cheaper and right in the mean.
        bound (float): of the singular values, with mode "spectral".

    Raises:
        ValueError: coefficient, period, log period, fraction or bound out of range, a fraction below 1 with
            "spectral", unknown mode; in
            :meth:`before_train`, a pattern that matches no convolution, or no `include` for a model without
            ISONet, UNet and `backbone`.
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
    ):
        if isinstance(coeff, str) or not (math.isfinite(coeff) and coeff >= 0):
            raise ValueError(f"OrthogonalityLossHook coeff must be a finite number >= 0, got {coeff}")
        if period < 1:
            raise ValueError(f"OrthogonalityLossHook period must be at least 1 (every step), got {period}")
        if log_period < 0:
            raise ValueError(f"OrthogonalityLossHook log_period must be >= 0 (0: never), got {log_period}")
        if mode not in ("paper", "exact", "spectral"):
            raise ValueError(f"orthogonality mode must be 'paper', 'exact' or 'spectral', got {mode!r}")
        if mode == "spectral" and fraction != 1:
            raise ValueError(f"the spectral penalty has no fraction of frequencies, got {fraction}")
        # raises now and not at the first step
        self._spectral = SpectralPenalty([], bound) if mode == "spectral" else None
        if self._spectral is None:
            orthogonality_losses([], mode, fraction)
        self.coeff = coeff
        self.mode = mode
        self.include = include
        self.exclude = exclude
        self.period = period
        self.log_period = log_period
        self.fraction = fraction
        self.bound = bound
        self._loaded = {"vectors": []}
        self._convs = {}
        self._others = []
        self._processes = 1
        self._handle = None

    def before_train(self):
        model = unwrap(self.trainer.model)
        convs = find_convolutions(model)
        names = select(convs, self.include) if self.include else default_layers(model, convs)
        excluded = select(convs, self.exclude)
        self._convs = {
            name: convs[name] for name in names if name not in excluded and convs[name].weight.requires_grad
        }
        left = [name for name in convs if name not in self._convs]
        logger.info(
            "Orthogonality penalty (%s, gamma %g, every %d steps) on %d convolutions: %s; left out %d: %s",
            self.mode,
            self.coeff,
            self.period,
            len(self._convs),
            summary(self._convs),
            len(left),
            summary(left),
        )
        if self._convs:
            self._handle = model.register_forward_hook(self._add_loss)
        else:
            logger.warning("The orthogonality penalty has no layer to act on: all are excluded or frozen")
        # no other wrapper is known to average the gradients
        if isinstance(self.trainer.model, DistributedDataParallel):
            self._processes = comm.get_world_size()
            layers = self._convs
            self._convs = _share(layers, self.mode, comm.get_rank(), self._processes)
            self._others = [conv for name, conv in layers.items() if name not in self._convs]
        if self._spectral is not None:
            self._spectral = SpectralPenalty(self._convs.values(), self.bound)
            self._spectral.load_state_dict(self._loaded)

    def state_dict(self):
        """With mode "spectral" the vectors of this process's power iteration, else nothing."""
        return {} if self._spectral is None else self._spectral.state_dict()

    def load_state_dict(self, state):
        self._loaded = state

    def after_train(self):
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _add_loss(self, model, _, output):
        # Without gradients it is no training step: PreciseBN runs the model in training mode, too.
        if not model.training or not torch.is_grad_enabled() or self.trainer.iter % self.period != 0:
            return None
        if self._spectral is None:
            losses = orthogonality_losses(self._convs.values(), self.mode, self.fraction)
        else:
            losses = self._spectral()
        loss = self.coeff * self.period * self._processes * losses.sum()
        # a gradient of 0 for the other layers: DistributedDataParallel waits for one from every process
        loss = loss + sum(conv.weight[:0].sum() for conv in self._others)
        storage = self.trainer.storage
        if self.log_period and self.trainer.iter % self.log_period < self.period:
            own = dict(zip(self._convs, losses.tolist(), strict=True))
            values = {name: value for share in self._gather(own) for name, value in share.items()}
            for name, value in values.items():
                storage.put_scalar(f"ortho/{name}", value, smoothing_hint=False)
            storage.put_scalar("ortho/total", sum(values.values()), smoothing_hint=False)
        if isinstance(output, torch.Tensor):
            # Detectron2 writes no parts of a loss that comes as one tensor.
            storage.put_scalar("loss_ortho", sum(self._gather(loss.item())) / self._processes)
            return output + loss
        if not isinstance(output, Mapping):
            raise TypeError(
                "OrthogonalityLossHook needs a model that returns a dict of losses or a loss tensor in "
                f"training, {type(model).__name__} returned {type(output).__name__}"
            )
        return {**output, "loss_ortho": output.get("loss_ortho", 0.0) + loss}

    def _gather(self, value):
        """A list of the values of all processes, in the first of them."""
        return comm.gather(value) if self._processes > 1 else [value]


def _share(convs, mode, process, processes):
    """The convolutions of one process: the dearest first, each to whom has the least to do so far."""
    mode = "exact" if mode == "spectral" else mode  # the same layers are the large ones
    cost = {name: orthogonality_multiply_adds(conv, mode) for name, conv in convs.items()}
    shares = [{} for _ in range(processes)]
    for name in sorted(convs, key=cost.get, reverse=True):
        least = min(shares, key=lambda share: sum(cost[name] for name in share))
        least[name] = convs[name]
    return shares[process]
