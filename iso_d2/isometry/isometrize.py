"""Turning a convolutional network into one without normalization that is isometric.

The changes are those of Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020, and, with the
scaled signal, of docs/signal.md. Dividing what a layer reads by its root mean square at the start: NFNet
(Brock et al., 2021, https://arxiv.org/abs/2102.06171, section 3), whose constants are those of residual nets.
"""

import contextlib
import copy
import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import fx

from ._rewriting import Rewriting
from ._tracing import kind, trace


@dataclass
class IsometrizeReport:
    """What :func:`isometrize` changed and what it could not change; printable.

    Modules are called by their dotted names, those of functions by the module that calls them.

    Attributes:
        signal (str): "scaled" or "paper".
        norms (dict[str, str]): normalizations that are gone, and their kind.
        activations (dict[str, str]): SReLUs, and what was in their place.
        layers (dict[str, str]): layers that start as isometries, and how.
        biases (list[str]): those of them that have a bias in place of the normalization's.
        scales (list[str]): residual scales.
        merges, concatenations (list[str]): where signals are brought to equal mean squares.
        gates (list[str]): layers and activations that compute factors; they are as they were.
        kept (list[str]): layers of the output; their weights are as they were.
        decisions (list[str]): modules whose forward asks for a value or a size in Python. The answers are
            those of the example.
        left (dict[str, str]): what could not be made isometric, and why.
    """

    signal: str
    norms: dict = field(default_factory=dict)
    activations: dict = field(default_factory=dict)
    layers: dict = field(default_factory=dict)
    biases: list = field(default_factory=list)
    scales: list = field(default_factory=list)
    merges: list = field(default_factory=list)
    concatenations: list = field(default_factory=list)
    gates: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    decisions: list = field(default_factory=list)
    left: dict = field(default_factory=dict)

    def __str__(self):
        lines = [f"signal: {self.signal}"]
        for name, found in list(vars(self).items())[1:]:
            lines.append(f"{name} ({len(found)})")
            lines += [f"  {x}: {found[x]}" if isinstance(found, dict) else f"  {x}" for x in found]
        return "\n".join(lines)


def isometrize(model, example_inputs, signal="scaled"):
    """A network without normalization, isometric at its start, with the layers of a given one.

    Batch, group, instance and layer normalization are left out, those of tokens (N, T, C) excepted. Each call
    of an activation (ReLU, LeakyReLU, SiLU, GELU, Hardswish and their like) becomes an SReLU of its own.
    Convolutions, and linear layers within the network, start as random isometries. A residual branch has a
    learned scale.

    With ``signal="scaled"`` a layer that reads values of mean square q has the gain

        g = conv_gain(shape, stride, groups) / sqrt(q),

    so that its outputs have a mean square of about 1. q is measured at the start, with random normal inputs
    of the shapes of `example_inputs`; for centred kernels without the square of the mean. Residual scales
    start at 1 / sqrt(their number). The terms of other sums of k signals are multiplied by 1 / sqrt(k q), the
    parts of a concatenation by 1 / sqrt(q), and so is what an activation reads of a sum or pool that was
    normalized. A linear layer of the output that reads an average over n pixels has gain sqrt(n), with
    residual sums n^(1/4).
    Layers whose normalization adds a number to each channel have a bias, as do those that had one.

    With ``signal="paper"`` convolutions start as delta kernels (7x7 kernels stay), residual scales at 0.
    There are no gains, factors or further biases, and linear layers stay as they are.

    Layers of the output, after which neither a layer nor an activation comes, keep their weights. So does
    what computes a gate, as in squeeze-and-excitation. All other weights are new: trained ones are lost.

    Args:
        model (nn.Module): a network that maps tensors to tensors, or to tuples and dicts of them. It is not
            changed. What it does only in training is in the result if it is in training mode.
        example_inputs (Tensor or tuple of Tensor): what its forward pass takes; images of the size of the
            training. The result takes just as many arguments; further ones have their defaults.
        signal (str): "scaled" or "paper".

    Returns:
        tuple[fx.GraphModule, IsometrizeReport]: the network, in the mode of `model`, with the module names of
        `model`; what was changed.

    Raises:
        ValueError: unknown signal; a forward pass that cannot be traced, with the operation; a network
            without any convolution.

    A warning names what could not be made isometric (attention, recurrent layers), and a forward pass that
    does something else in the other mode.
    """
    if signal not in ("paper", "scaled"):
        raise ValueError(f"isometrize's signal must be paper or scaled, got {signal!r}")
    single = isinstance(example_inputs, torch.Tensor)
    inputs = (example_inputs,) if single else tuple(example_inputs)
    network = copy.deepcopy(model)
    found = trace(network, copy.deepcopy(inputs))
    _warn_of_other_mode(model, inputs, found)
    report = IsometrizeReport(signal, {norm.name: norm.kind for norm in found.norms})
    rewriting = Rewriting(network, found, report)
    if not report.layers:
        raise ValueError(f"isometrize found no convolution in {type(model).__name__} that it can change")
    result = rewriting.finish(type(model).__name__)
    if signal == "scaled":
        noise = (torch.randn_like(x) if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)
        _calibrate(result, tuple(noise), rewriting.measured)
    if report.left:
        left = "; ".join(f"{name} ({why})" for name, why in report.left.items())
        warnings.warn(f"isometrize left as it was: {left}", stacklevel=2)
    return result, report


class _Calibration(fx.Interpreter):
    """A forward pass that sets each module before its first call, from the mean square that it reads."""

    def __init__(self, network, measured):
        super().__init__(network)
        self.measured = dict(measured)

    def call_module(self, target, args, kwargs):
        if set_from := self.measured.pop(target, None):
            x = args[0].float()
            if getattr(self.fetch_attr(target), "centred", False):  # nothing of a mean comes through
                x = x - x.mean()
            mean_square = x.square().mean().item()
            if 0 < mean_square < math.inf:
                set_from(mean_square)
        return super().call_module(target, args, kwargs)


@torch.no_grad()
def _calibrate(network, inputs, measured):
    modes = {module: module.training for module in network.modules()}
    network.eval()
    _Calibration(network, measured).run(*inputs)
    for module, mode in modes.items():
        module.training = mode


def _warn_of_other_mode(model, inputs, found):
    other = copy.deepcopy(model).train(not model.training)
    with contextlib.suppress(ValueError):
        graphs = found.graph, trace(other, copy.deepcopy(inputs)).graph
        operations = [[(node.op, kind(node.target)) for node in graph.nodes] for graph in graphs]
        if operations[0] != operations[1]:
            mode = "training" if model.training else "evaluation"
            warnings.warn(
                f"{type(model).__name__} does something else in training than in evaluation: the result "
                f"always does what the model does in {mode}, the mode that it is in",
                stacklevel=3,
            )
