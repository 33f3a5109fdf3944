"""Bytes that a training step keeps for its backward pass, counted exactly, on any device."""

import gc

import torch

from .networks import feature_loss, isonet, networks, plain_form_, training_step
from .report import Table, judge

MIB = 2**20
# Saved bytes of R-ISONet over those of the batch-norm ResNet
TARGET = 0.6


def saved_bytes(model, inputs, checkpointed=(), loss=None):
    """Bytes of the storages that autograd keeps between forward and backward.

    Each storage counts once, whole, however many operations save it or a view of it. Parameters, buffers and
    the input do not count: they are there anyway.

    Args:
        model (nn.Module): in training mode or not, as it is to be counted.
        inputs (Tensor): what it is called with.
        checkpointed (sequence of str): dotted names of modules under activation checkpointing: what they are
            called with is kept for their second forward pass.
        loss (callable or None): model, inputs -> what backward would start from; None: the model's output.

    Returns:
        int
    """
    free = {_address(tensor) for tensor in (*model.parameters(), *model.buffers(), inputs)}
    kept = {}  # holds the storages, so that no address is used twice

    def keep(tensor):
        if _address(tensor) not in free:
            kept[_address(tensor)] = tensor.untyped_storage()
        return tensor

    def keep_inputs(_, arguments):
        for argument in arguments:
            keep(argument)

    handles = [model.get_submodule(name).register_forward_pre_hook(keep_inputs) for name in checkpointed]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            (loss or _call)(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sum(storage.nbytes() for storage in kept.values())


def _address(tensor):
    return tensor.untyped_storage().data_ptr()


def _call(model, inputs):
    return model(inputs)


def peak_bytes(step):
    """Peak of the CUDA memory that a step allocates beside what is there before it.

    Args:
        step (callable): without arguments; called twice, once to settle.

    Returns:
        int
    """
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_memory(options, seconds):
    """The part "memory": list[Table]. It is counted, not timed, so `seconds` is not used up."""
    images = options.images()
    baseline = f"ResNet-{options.depth} BN"
    rows = []

    def add(name, net, checkpointed=()):
        bytes_kept = saved_bytes(
            net, images, checkpointed, lambda model, inputs: feature_loss(model, inputs, options)
        )
        row = {"network": name, "saved, MiB": bytes_kept / MIB}
        if options.device == "cuda":
            row["peak of a step, MiB"] = peak_bytes(training_step(net, images, options)) / MIB
        rows.append(row)

    nets = networks(options)
    ours = next(iter(nets))
    while nets:
        name = next(iter(nets))
        add(name, nets.pop(name))
    add(f"{ours}, plain: relu(x - b) + b, x + s * f", plain_form_(isonet(options)))
    stages = isonet(options).stage_names
    for names in (stages[:1], stages[:2], stages):
        add(
            f"{ours}, checkpointed {', '.join(names)}", isonet(options, checkpoint_stages=tuple(names)), names
        )
    gc.collect()
    (reference,) = (row["saved, MiB"] for row in rows if row["network"] == baseline)
    for row in rows:
        row["over BN"] = row["saved, MiB"] / reference
        if row["network"] == ours and options.has_targets:
            row["target"] = judge(row["over BN"], at_most=TARGET)
    size = "x".join(map(str, images.shape))
    return [Table(f"Saved for backward in a training step, {size} {options.dtype}, counted", rows)]
