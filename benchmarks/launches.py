"""How many kernels a GPU would be asked for, counted by operators, on any device."""

import dataclasses
import importlib
from functools import partial
from unittest import mock

import torch
from detectron2.solver.build import maybe_add_gradient_clipping
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from iso_d2.engine import build_optimizer
from iso_d2.engine.setup import load_config
from iso_d2.isometry import SpectralPenalty, orthogonality_losses

from .networks import isonet, penalised_convs, resnet, training_step
from .penalty import paper_losses, values_and_gradients
from .report import Table

# They only make a tensor, or look at one
NO_KERNEL = ("empty", "new_empty", "_unsafe_view", "promote_types", "detach", "lift_fresh")


class CountLaunches(TorchDispatchMode):
    """Counts the operators that are called on tensors, but not views and what only makes a tensor.

    An operator of PyTorch is one kernel or a few on a GPU, such as a convolution's backward pass; one of
    ``torch._foreach`` counts once, too, though it takes one kernel for some hundred tensors.

    Attributes:
        names (list[str]): of the operators, in order.
        bytes (int): of the tensors that they were given and returned, as if none stayed in a cache.
    """

    def __init__(self):
        super().__init__()
        self.names = []
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        name = func.__name__.split(".")[0]
        result = func(*args, **(kwargs or {}))
        if not is_view and not name.startswith(NO_KERNEL):
            self.names.append(name)
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def launches(step):
    """int: the operators of a step, which was taken once before."""
    step()
    with CountLaunches() as counted:
        step()
    return len(counted.names)


def as_on_gpu():
    """A context in which layers are grouped and padded as on a GPU."""
    module = importlib.import_module("iso_d2.isometry.orthogonality")
    return mock.patch.object(module, "_on_gpu", lambda device: True)


def measure_launches(options, seconds):
    """The part "launches": list[Table]. It is counted, not timed, so `seconds` is not used up.

    The number does not depend on the size of the images or the batch, so both are small.
    """
    small = dataclasses.replace(options, batch=2, size=(32, 32) if options.cifar else (64, 64))
    net, norm = isonet(small), resnet(small, "BN")
    convs = penalised_convs(net)
    spectral = SpectralPenalty(convs)
    forms = {
        "paper's form": paper_losses,
        "iso_d2, mode paper": orthogonality_losses,
        "iso_d2, mode spectral": lambda _: spectral(),
    }
    with as_on_gpu():
        penalties = [
            {"penalty": name, "launches": launches(partial(values_and_gradients, convs, form))}
            for name, form in forms.items()
        ]
    steps = [
        {"network": name, "launches": launches(training_step(model, small, small.images()))}
        for name, model in (
            (f"R-ISONet-{options.depth}", net),
            (f"ResNet-{options.depth} BN", norm),
        )
    ]
    return [
        Table(f"Penalty of {len(convs)} convolutions, value and gradient, counted", penalties),
        Table("Forward and backward pass without penalty, counted", steps),
        Table(f"Step of the optimizer, {len(list(net.parameters()))} parameters, counted", _optimizers(net)),
    ]


def _optimizers(net):
    rows = []
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    for clipping in ("none", "norm", "full_model", "value"):
        cfg = load_config(opts=["SOLVER.CLIP_GRADIENTS.ENABLED", clipping != "none"])
        if clipping != "none":
            cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clipping
        row = {"clipping": clipping, "launches": launches(build_optimizer(cfg, net).step)}
        if clipping in ("norm", "value"):
            with torch.no_grad():
                clipped = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
                theirs = clipped(net.parameters(), 0.0, momentum=0.9, weight_decay=1e-4, foreach=True)
                row["Detectron2's"] = launches(theirs.step)
        rows.append(row)
    return rows
