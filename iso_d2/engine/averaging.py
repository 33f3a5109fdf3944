"""The exponential moving average of the weights of a training."""

import contextlib

import torch
from detectron2.engine import HookBase
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..isometry.model import unwrap


class AverageHook(HookBase):
    """Keep an exponential moving average a of the weights w: for evaluations, and as what checkpoints hold.

        a <- d a + (1 - d) w    after each step t = 0, 1, 2, ...,    d = min(decay, t / (t + 9))

    So a starts as the weights after the first step, and is soon one over some tenth of the steps so far.
    Buffers of floats (statistics of batch normalization) are averaged alike, others are copied. The optimizer
    goes on with w.

    A checkpoint has a as its model, so that evaluation, prediction and another training read a without
    knowing of it; w is in the hook's state, and comes back when the training goes on. Register the hook
    before :class:`~iso_d2.engine.checkpoint_hooks.CheckpointHook`, and give it to the checkpointer:
    ``checkpointer.average = hook``.

    Args:
        decay (float): in [0, 1).

    Attributes:
        weights (dict[str, Tensor] or None): a, by the names of the model's state dict.

    Raises:
        ValueError: a decay out of range.

    Source: torch.optim.swa_utils, whose function averages; the smaller decays of the start are those of
    TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay):
        if not 0 <= decay < 1:
            raise ValueError(f"SOLVER.EMA must be at least 0 (off) and below 1, such as 0.999, got {decay}")
        self.decay, self.steps, self.weights = decay, 0, None

    def before_train(self):
        if self.weights is None:
            self.weights = self._copy()

    def after_step(self):
        update = get_ema_multi_avg_fn(min(self.decay, self.steps / (self.steps + 9)))
        present = self._present()
        floats = [name for name, tensor in present.items() if tensor.is_floating_point()]
        update([self.weights[name] for name in floats], [present[name] for name in floats], self.steps)
        for name in present.keys() - set(floats):
            self.weights[name].copy_(present[name])
        self.steps += 1

    @contextlib.contextmanager
    def in_place(self):
        """Let the model have the average within the context, and its own weights afterwards, bit by bit."""
        own = self._copy()
        self._load(self.weights)
        try:
            yield
        finally:
            self._load(own)

    def state_dict(self):
        return {"steps": self.steps, "trained": self._present()}

    def load_state_dict(self, state):
        """Called when the model has the average of the checkpoint; afterwards it has its own weights."""
        self.weights, self.steps = self._copy(), state["steps"]
        self._load(state["trained"])

    def _present(self):
        return unwrap(self.trainer.model).state_dict()

    def _copy(self):
        return {name: tensor.clone() for name, tensor in self._present().items()}

    @torch.no_grad()
    def _load(self, weights):
        for name, tensor in self._present().items():
            # others are of a model that has changed, which the checkpointer and the optimizer tell
            if name in weights and weights[name].shape == tensor.shape:
                tensor.copy_(weights[name])
