"""The inner trainers of mixed precision."""

import time

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
        for module in model.modules():
            # a pooler of several levels allocates its output in the type of its input
            if isinstance(module, (ROIAlign, ROIPooler)):
                module.register_forward_pre_hook(_with_float_features)

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


def _with_float_features(_, inputs):
    features, *rest = inputs
    if isinstance(features, list):
        return [level.float() for level in features], *rest
    return features.float(), *rest


def inner_trainer(cfg):
    """The class that takes the training steps, by SOLVER.AMP: called with model, data loader and optimizer.

    Raises:
        ValueError: unknown SOLVER.AMP.PRECISION.
    """
    amp = cfg.SOLVER.AMP
    if amp.PRECISION not in PRECISIONS:
        raise ValueError(
            f"SOLVER.AMP.PRECISION must be one of {', '.join(PRECISIONS)}, got {amp.PRECISION!r}"
        )
    if not amp.ENABLED:
        return SimpleTrainer
    return AMPTrainer if amp.PRECISION == "fp16" else BF16Trainer
