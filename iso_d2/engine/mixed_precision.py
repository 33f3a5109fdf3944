"""The inner trainers of mixed precision."""

import time

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler

PRECISIONS = ("fp16", "bf16")


class BF16Trainer(SimpleTrainer):
    """SimpleTrainer whose forward pass runs under bfloat16 autocast, on CUDA and on a CPU.

    bfloat16 has float32's range, so that the loss needs no scaling; weights, gradients and optimizer stay
    float32. Detectron2's AMPTrainer is for CUDA alone and always scales.

    ROIAlign and ROIPooler get float32 features: they take boxes to their type, and in bfloat16 a coordinate
    of 512 pixels would be rounded to a multiple of 4.
    """

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        for module in model.modules():
            # a pooler of several levels prepares its output in the type of its input
            if isinstance(module, (ROIAlign, ROIPooler)):
                module.register_forward_pre_hook(_with_float_features)

    def run_step(self):
        assert self.model.training, "the model was changed to evaluation mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16):
            losses = self.model(data)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


def _with_float_features(_, inputs):
    features, *rest = inputs
    if isinstance(features, list):
        return [level.float() for level in features], *rest
    return features.float(), *rest


def inner_trainer(cfg):
    """The class that takes the training steps: float32, or the mixed precision of SOLVER.AMP.

    Args:
        cfg (CfgNode): SOLVER.AMP.ENABLED and SOLVER.AMP.PRECISION.

    Returns:
        type: called with the model, the data loader and the optimizer.

    Raises:
        ValueError: the precision is unknown.
    """
    amp = cfg.SOLVER.AMP
    if amp.PRECISION not in PRECISIONS:
        raise ValueError(
            f"SOLVER.AMP.PRECISION must be one of {', '.join(PRECISIONS)}, got {amp.PRECISION!r}"
        )
    if not amp.ENABLED:
        return SimpleTrainer
    return AMPTrainer if amp.PRECISION == "fp16" else BF16Trainer
