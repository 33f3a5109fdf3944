"""Delta initialisation and the orthogonality penalty as hooks of any Detectron2 trainer.

Both name layers by patterns: a pattern is the dotted name of a convolution or of a module above it,
``backbone.res2``, or an fnmatch pattern of such names, ``backbone.res*`` or ``*.conv2``.

Source: Qi et al., Deep Isometric Learning for Visual Recognition, ICML 2020, Section 3.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..isometry import SharedScale, delta_init_, orthogonality_losses
from ..modeling import IsoBlock, ISONet, UNet

NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm)

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
        model = _unwrap(self.trainer.model)
        convs = _find_convolutions(model)
        names = _select(convs, self.include)
        branch_ends = _branch_ends(model)
        kept = [name for name in names if convs[name].kernel_size == (7, 7)]
        zeroed = [name for name in names if convs[name] in branch_ends and name not in kept]
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
            _summary(names),
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

    Args:
        coeff (float): gamma.
        mode (str): "paper" or "exact", see :func:`iso_d2.isometry.orthogonality_loss`.
        include (sequence of str or None): patterns of the layers to penalise. None: the convolutions
            of every ISONet, IsoBlock and UNet; in a model without them those of ``model.backbone``, but
            not an FPN's own; of these all but 7x7 kernels, 3-channel inputs and, like the linear layer of
            a classifier, UNet's output, as in the paper's code. A UNet that is not isometric counts, too.
        exclude (sequence of str): patterns of layers to leave out. Frozen ones are left out anyway.
        period (int): penalise every n-th step with n times the coefficient, which costs 1/n.
        log_period (int): write ``ortho/...`` at the first penalised step of every so many; 0: never.

    Raises:
        ValueError: coefficient, period or log period out of range, unknown mode; in :meth:`before_train`,
            a pattern that matches no convolution, or no `include` for a model without ISONet, UNet and
            `backbone`.
    """

    def __init__(self, coeff, mode="paper", include=None, exclude=(), period=1, log_period=100):
        if not (math.isfinite(coeff) and coeff >= 0):
            raise ValueError(f"OrthogonalityLossHook coeff must be a finite number >= 0, got {coeff}")
        if period < 1:
            raise ValueError(f"OrthogonalityLossHook period must be at least 1 (every step), got {period}")
        if log_period < 0:
            raise ValueError(f"OrthogonalityLossHook log_period must be >= 0 (0: never), got {log_period}")
        orthogonality_losses([], mode)  # raises for an unknown mode now and not at the first step
        self.coeff = coeff
        self.mode = mode
        self.include = include
        self.exclude = exclude
        self.period = period
        self.log_period = log_period
        self._convs = {}
        self._handle = None

    def before_train(self):
        model = _unwrap(self.trainer.model)
        convs = _find_convolutions(model)
        names = _select(convs, self.include) if self.include else _default_layers(model, convs)
        excluded = _select(convs, self.exclude)
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
            _summary(self._convs),
            len(left),
            _summary(left),
        )
        if self._convs:
            self._handle = model.register_forward_hook(self._add_loss)
        else:
            logger.warning("The orthogonality penalty has no layer to act on: all are excluded or frozen")

    def after_train(self):
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _add_loss(self, model, _, output):
        # Without gradients it is no training step: PreciseBN runs the model in training mode, too.
        if not model.training or not torch.is_grad_enabled() or self.trainer.iter % self.period != 0:
            return None
        losses = orthogonality_losses(self._convs.values(), self.mode)
        loss = self.coeff * self.period * losses.sum()
        storage = self.trainer.storage
        if self.log_period and self.trainer.iter % self.log_period < self.period:
            values = losses.tolist()
            for name, value in zip(self._convs, values, strict=True):
                storage.put_scalar(f"ortho/{name}", value, smoothing_hint=False)
            storage.put_scalar("ortho/total", sum(values), smoothing_hint=False)
        if isinstance(output, torch.Tensor):
            # Detectron2 writes no parts of a loss that comes as one tensor.
            storage.put_scalar("loss_ortho", loss.item())
            return output + loss
        if not isinstance(output, Mapping):
            raise TypeError(
                "OrthogonalityLossHook needs a model that returns a dict of losses or a loss tensor in "
                f"training, {type(model).__name__} returned {type(output).__name__}"
            )
        return {**output, "loss_ortho": output.get("loss_ortho", 0.0) + loss}


def _unwrap(model):
    return model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model


def _find_convolutions(model):
    """dict[str, nn.Module]: the convolutions by dotted name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        # A deformable convolution's offsets are predicted by a convolution that must stay near 0.
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not name.endswith("_offset")
    }


def _select(names, patterns):
    """Those of `names` that a pattern matches, itself or through a module above it."""
    chosen = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for name in names if any(fnmatchcase(path, pattern) for path in _paths(name))}
        if not found:
            modules = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(
                f"Pattern {pattern!r} matches no convolution. Give the dotted name of a module or of a "
                "convolution, or an fnmatch pattern of such names. "
                f"Modules with convolutions: {', '.join(modules)}"
            )
        chosen |= found
    return [name for name in names if name in chosen]


def _paths(name):
    """'a.b.c' -> 'a', 'a.b', 'a.b.c'"""
    return accumulate(name.split("."), "{}.{}".format)


def _default_layers(model, convs):
    roots = [name for name, module in model.named_modules() if isinstance(module, (ISONet, IsoBlock, UNet))]
    if roots:
        names = [n for n in convs if any(root == "" or n.startswith(root + ".") for root in roots)]
    elif isinstance(getattr(model, "backbone", None), nn.Module):
        names = [n for n in convs if re.match(r"backbone\.(?!fpn_|top_block\b)", n)]
    else:
        raise ValueError(
            f"{type(model).__name__} has neither an ISONet, a UNet nor a module `backbone`: name the "
            "layers to penalise in `include` (ISO.ORTHO.INCLUDE). "
            f"Its modules: {', '.join(name for name, _ in model.named_children())}"
        )
    outputs = {module.output for module in model.modules() if isinstance(module, UNet)}
    return [
        n
        for n in names
        if convs[n].kernel_size != (7, 7) and convs[n].in_channels != 3 and convs[n] not in outputs
    ]


def _branch_ends(model):
    """The last convolutions of the branches of residual blocks in the style of ResNet."""
    ends = set()
    for block in model.modules():
        convs = [module for name, module in block.named_children() if re.fullmatch(r"conv\d+", name)]
        if not convs or not (hasattr(block, "shortcut") or hasattr(block, "downsample")):
            continue
        # A scale of 0 with a branch of 0 would never learn. A norm layer bounds the branch by itself,
        # and over a branch of 0 it would multiply the gradient by 1 / sqrt(eps).
        if not any(isinstance(module, (SharedScale, *NORM_LAYERS)) for module in block.modules()):
            ends.add(convs[-1])
    return ends


def _summary(names):
    """'backbone.res2 (10), backbone.res3 (13)': how many of the names lie where, down to the first number."""
    counts = Counter(re.split(r"\.\d+\b|\.\w+$", name, maxsplit=1)[0] for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items()) or "none"
