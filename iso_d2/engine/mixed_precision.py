"""The inner trainers: of mixed precision, and of steps in several parts."""

import contextlib
import time
from functools import partial

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler

PRECISIONS = ("fp16", "bf16")


class BF16Trainer(SimpleTrainer):
    """SimpleTrainer whose forward pass runs under bfloat16 autocast, on CUDA and on a CPU.

    bfloat16 has the range of float32, so the loss needs no scaling. Weights, gradients and optimizer stay
    float32. Detectron2's AMPTrainer is for CUDA only and always scales.

    The losses are written after the optimizer's step: a GPU is not waited for until all of its work is
    queued. So a loss that is not finite stops the training after that step, not before.

    ROIAlign and ROIPooler get float32 features. They convert boxes to the type of the features, and bfloat16
    rounds a coordinate of 512 pixels to a multiple of 4.
    """

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        _pool_in_float32(model)

    def run_step(self):
        assert self.model.training, "the model was changed to evaluation mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16):
            losses = self.model(data)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self.optimizer.step()
        if self.async_write_metrics:
            self.concurrent_executor.submit(self._write_metrics, losses, data_time, iter=self.iter)
        else:
            self._write_metrics(losses, data_time)


class AccumulatingTrainer(AMPTrainer):
    """Take each step on n batches of the loader, one after the other: the parts of one large batch.

        gradient = 1/n sum_i grad L(part i)

    Where L is a mean over images and nothing is drawn at random, that is the gradient of the whole batch to
    the rounding of float32; of batch normalization it is not, whose statistics are those of a part. The
    memory is that of one part. Gradients are zeroed once, clipped once and averaged over the processes once,
    and there is one step of the optimizer. The losses in the log are the means over the parts.

    Args:
        model, data_loader, optimizer: as of Detectron2's SimpleTrainer.
        parts (int): n. See :func:`parts_of`.
        precision (torch.dtype or None): of autocast: torch.bfloat16, torch.float16 with a scaled loss, or
            none.

    Attributes:
        part (int): which one is being computed, n - 1 between the steps. The orthogonality penalty is
            computed with the last one alone, n times as large.
    """

    def __init__(self, model, data_loader, optimizer, parts, precision=None):
        self.device = next(model.parameters()).device.type
        scaler = torch.amp.GradScaler(self.device, enabled=precision == torch.float16)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler, precision=precision)
        self.parts, self.part = parts, parts - 1
        if precision == torch.bfloat16:
            _pool_in_float32(model)

    def run_step(self):
        assert self.model.training, "the model was changed to evaluation mode"
        self.optimizer.zero_grad()
        means, data_time = {}, 0.0
        try:
            for part in range(self.parts):
                self.part, start = part, time.perf_counter()
                data = next(self._data_loader_iter)
                data_time += time.perf_counter() - start
                for name, loss in self._backward(data).items():
                    means[name] = means.get(name, 0) + loss.detach() / self.parts
        finally:
            self.part = self.parts - 1
        self.after_backward()
        self._write_metrics(means, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, data):
        is_last = self.part + 1 == self.parts
        # gradients of several processes are averaged in the backward pass of the last part
        alone = contextlib.nullcontext if is_last else getattr(self.model, "no_sync", contextlib.nullcontext)
        with alone():
            with torch.autocast(self.device, dtype=self.precision, enabled=self.precision is not None):
                losses = self.model(data)
            if isinstance(losses, torch.Tensor):
                losses = {"total_loss": losses}
            self.grad_scaler.scale(sum(losses.values()) / self.parts).backward()
        return losses

    def load_state_dict(self, state):
        """As of AMPTrainer; a checkpoint of another precision has no scale for the loss."""
        super().load_state_dict(
            state | {"grad_scaler": state.get("grad_scaler") or self.grad_scaler.state_dict()}
        )


def parts_of(batches, number):
    """Yield the parts of each batch, in its order.

    Args:
        batches (iterable): lists, or dicts of lists and tensors, (B, ...).
        number (int): of the parts of each.

    Raises:
        ValueError: a batch that cannot be divided.
    """
    for batch in batches:
        size = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
        if size % number:
            raise ValueError(
                f"SOLVER.ACCUMULATE {number} does not divide {size}, the images of a batch of the data loader"
            )
        for start in range(0, size, size // number):
            part = slice(start, start + size // number)
            yield {k: v[part] for k, v in batch.items()} if isinstance(batch, dict) else batch[part]


def _pool_in_float32(model):
    for module in model.modules():
        # a pooler of several levels allocates its output in the type of its input
        if isinstance(module, (ROIAlign, ROIPooler)):
            module.register_forward_pre_hook(_with_float_features)


def _with_float_features(_, inputs):
    features, *rest = inputs
    if isinstance(features, list):
        return [level.float() for level in features], *rest
    return features.float(), *rest


def inner_trainer(cfg):
    """What makes the trainer of the steps, by SOLVER.AMP and SOLVER.ACCUMULATE, of model, loader, optimizer.

    Raises:
        ValueError: unknown SOLVER.AMP.PRECISION.
    """
    amp = cfg.SOLVER.AMP
    if amp.PRECISION not in PRECISIONS:
        raise ValueError(
            f"SOLVER.AMP.PRECISION must be one of {', '.join(PRECISIONS)}, got {amp.PRECISION!r}"
        )
    if cfg.SOLVER.ACCUMULATE > 1:
        precision = {"fp16": torch.float16, "bf16": torch.bfloat16}[amp.PRECISION] if amp.ENABLED else None
        return partial(AccumulatingTrainer, parts=cfg.SOLVER.ACCUMULATE, precision=precision)
    if not amp.ENABLED:
        return SimpleTrainer
    return AMPTrainer if amp.PRECISION == "fp16" else BF16Trainer
