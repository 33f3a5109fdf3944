"""Bytes that a training step keeps for its backward pass, counted exactly, on any device."""

import torch
from torch import nn

from .networks import isonet, networks, plain_form_, training_loss, training_step
from .report import Table, judge

MIB = 2**20
# Saved bytes of R-ISONet over those of the batch-norm ResNet
TARGET = 0.6


def saved_bytes(model, inputs, checkpointed=(), forward=nn.Module.__call__):
    """int: bytes of the storages that autograd keeps between forward and backward.

    Each storage counts once, whole, however many operations save it or a view of it. Parameters, buffers and
    the input do not count: they are there anyway. `checkpointed` are the names of modules under activation
    checkpointing: what they are called with is kept for their second forward pass. `forward` is a function
    of model and inputs that returns what backward would start from.
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
            forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sum(storage.nbytes() for storage in kept.values())


def _address(tensor):
    return tensor.untyped_storage().data_ptr()


def peak_bytes(step):
    """Peak of the CUDA memory that a step allocates beside what is there before it; called once to settle."""
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_memory(options, seconds):
    """The part "memory": list[Table]. It is counted, not timed, so `seconds` is not used up."""
    images, nets = options.images(), networks(options)
    ours = next(iter(nets))
    nets[f"{ours}, plain: relu(x - b) + b, x + s * f"] = plain_form_(isonet(options))
    stages, checkpointed = tuple(nets[ours].stage_names), {}
    for names in (stages[:1], stages[:2], stages):
        name = f"{ours}, checkpointed {', '.join(names)}"
        nets[name], checkpointed[name] = isonet(options, checkpoint_stages=names), names
    rows = []
    for name, net in nets.items():
        kept = saved_bytes(
            net, images, checkpointed.get(name, ()), lambda *call: training_loss(*call, options)
        )
        row = {"network": name, "saved, MiB": kept / MIB}
        if options.device == "cuda":
            row["peak of a step, MiB"] = peak_bytes(training_step(net, options, images)) / MIB
        rows.append(row)
    (reference,) = (row["saved, MiB"] for row in rows if row["network"] == f"ResNet-{options.depth} BN")
    for row in rows:
        row["over BN"] = row["saved, MiB"] / reference
        if row["network"] == ours and options.has_targets:
            row["target"] = judge(row["over BN"], at_most=TARGET)
    return [Table(f"Saved for backward in a training step, {options.describe(images.shape)}, counted", rows)]
