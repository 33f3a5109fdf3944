"""torch.compile for the network of a model in training."""

import logging

import torch
from detectron2.engine import HookBase

from ..isometry.model import unwrap

logger = logging.getLogger(__name__)

# Where a module keeps what hooks were registered on it
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class CompileHook(HookBase):
    """Run the network of a model compiled in the steps of a training.

    The network is the model's ``unet`` or ``backbone``. It stays the same module, with the same parameters
    and state dict. The penalty is not compiled, nor are the heads of a detector, whose number of regions
    changes.

    The first step runs as usual, and so does each step in which a module of the network has a hook, such as
    those of :class:`~iso_d2.engine.SignalHook` and :class:`~iso_d2.engine.IsometryHook`: compiled code would
    not call it. Evaluation between the steps runs as usual, too. If the forward pass cannot be compiled, for
    example because there is no C++ compiler, a warning says why, and the training goes on without it. An
    error in compiling the backward pass stops the training.

    Args:
        options: those of ``torch.compile``, e.g. ``mode="max-autotune"``.
    """

    def __init__(self, **options):
        self.options = options
        self._network = self._compiled = None
        self._handles = []

    def before_train(self):
        model = unwrap(self.trainer.model)
        self._network = getattr(model, "unet", getattr(model, "backbone", None))
        if self._network is None or "forward" in vars(self._network):
            known = "a network with another `forward`"
            what = "neither `unet` nor `backbone`" if self._network is None else known
            logger.warning("MODEL.COMPILE: %s has %s, nothing is compiled", type(model).__name__, what)
            return
        self._compiled = torch.compile(self._network.forward, **self.options)
        # The network's `forward` is another one during the call of the model alone, so that copies have their
        # own. Functions, since a copy of a method would copy this hook and the trainer.
        self._handles = [
            model.register_forward_pre_hook(lambda model, _: self._swap(model)),
            model.register_forward_hook(lambda *_: self._swap_back(), always_call=True),
        ]

    def after_train(self):
        for handle in self._handles:
            handle.remove()

    def _swap(self, model):
        in_step = model.training and torch.is_grad_enabled()
        if self._compiled is None or not in_step or self.trainer.iter == self.trainer.start_iter:
            return
        if not any(getattr(module, name) for module in self._network.modules() for name in HOOKS):
            self._network.forward = self._forward

    def _swap_back(self):
        vars(self._network).pop("forward", None)

    def _forward(self, *args, **kwargs):
        try:
            return self._compiled(*args, **kwargs)
        except Exception as error:
            # an error of the network itself comes again here
            outputs = type(self._network).forward(self._network, *args, **kwargs)
            logger.warning(
                "MODEL.COMPILE: torch.compile failed, the training goes on without it. The cause: %s", error
            )
            self._compiled = None
            return outputs
