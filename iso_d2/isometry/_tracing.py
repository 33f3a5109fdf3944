"""Tracing of a network by torch.fx, in which each intermediate result also has its value for given inputs.

With the values at hand, decisions on shapes can be traced, and the rewriting knows every shape.
"""

import inspect
import re
import traceback
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from .activation import SharedScale, SReLU

NORM_FUNCTIONS = {"batchnorm", "groupnorm", "instancenorm", "layernorm"}
ACTIVATIONS = {
    "relu",
    "relu6",
    "leakyrelu",
    "prelu",
    "rrelu",
    "elu",
    "celu",
    "selu",
    "silu",
    "swish",
    "swishme",
    "gelu",
    "gelutanh",
    "quickgelu",
    "mish",
    "mishme",
    "hardswish",
    "hardswishme",
    "memoryefficientswish",
}
GATES = {"sigmoid", "hardsigmoid", "hardsigmoidme", "softmax", "tanh"}


@dataclass
class Norm:
    """A normalization that was left out: its name, and the node that it would have read."""

    name: str
    kind: str
    reads: fx.Node
    shifts: bool  # it adds a learned number to each channel


@dataclass
class Trace:
    """A traced network: its graph and what is known about it."""

    graph: fx.Graph
    values: dict
    norms: list[Norm] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)  # modules that were not looked into, and why
    decisions: set[str] = field(default_factory=set)  # where the forward pass asked for a value


def kind(thing):
    """The name of a module's class or of a function, without case and underscores: 'leakyrelu'."""
    name = type(thing).__name__ if isinstance(thing, nn.Module) else getattr(thing, "__name__", str(thing))
    return re.sub("_", "", name.lower())


def trace(model, inputs):
    """Trace a network with its normalizations left out.

    Args:
        model (nn.Module): the network, in its present mode. Its state may change.
        inputs (tuple): what its forward pass takes, by position.

    Returns:
        Trace: of a function of these inputs alone. Further arguments have their defaults.

    Raises:
        ValueError: the forward pass cannot be traced.
    """
    tracer = _Tracer(model, inputs)
    names = list(inspect.signature(model.forward).parameters.values())[len(inputs) :]
    constants = {p.name: p.default for p in names if p.default is not p.empty}
    try:
        tracer.found.graph = tracer.trace(model, concrete_args=constants or None)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f for f in frames if not re.search(r"[/\\]torch[/\\]|_tracing\.py", f.filename)]
        place = places[-1] if places else frames[-1]
        raise ValueError(
            f"isometrize cannot trace {type(model).__name__}: {type(error).__name__} at {place.filename}:"
            f"{place.lineno}, `{place.line}`: {error}. Check that the example inputs are what its forward "
            "takes, or give a module of it that maps tensors to tensors, such as its backbone"
        ) from error
    _drop_arguments(tracer.found.graph, len(inputs))
    return tracer.found


def _drop_arguments(graph, count):
    """Remove all arguments but the first, with torch's checks that they have their defaults."""
    doomed = [node for node in graph.nodes if node.op == "placeholder"][count:]
    for node in graph.nodes:
        if not set(doomed).isdisjoint(node.all_input_nodes):
            doomed.append(node)
    for node in reversed(doomed):
        graph.erase_node(node)


class _Concrete:
    """What Python asks of an object at once: answered with the value for the given inputs."""

    def __getattr__(self, name):
        return _Attribute(self, name)

    def __len__(self):
        return len(self.tracer.value_for_python(self))

    def __int__(self):
        return int(self.tracer.value_for_python(self))

    def __index__(self):
        return self.tracer.value_for_python(self).__index__()

    def __float__(self):
        return float(self.tracer.value_for_python(self))


class _Proxy(_Concrete, fx.Proxy):
    pass


class _Attribute(_Concrete, fx.proxy.Attribute):
    pass


class _Tracer(fx.Tracer):
    def __init__(self, model, inputs):
        super().__init__()
        self.found = Trace(None, {})
        self._model, self._inputs = model, list(inputs)
        self._computing = False
        self._cache = {}
        self._signal = set()  # nodes that depend on an input

    def proxy(self, node):
        return _Proxy(node, self)

    def value_for_python(self, proxy):
        path = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
        self.found.decisions.add(path or type(self._model).__name__)
        return self.found.values[proxy.node]

    def to_bool(self, obj):
        return bool(self.value_for_python(obj))

    def iter(self, obj):
        return iter([obj[i] for i in range(len(self.value_for_python(obj)))])

    def keys(self, obj):
        return list(self.value_for_python(obj).keys())

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if self._computing:
            return attr_val
        self._cache = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m, module_qualified_name):
        if super().is_leaf_module(m, module_qualified_name) or isinstance(m, (SReLU, SharedScale)):
            return True
        known = kind(m) in ACTIVATIONS | GATES or re.search("drop|stochasticdepth", kind(m))
        return module_qualified_name in self.found.opaque or bool(known and not _children(m))

    def call_module(self, m, forward, args, kwargs):
        if self._computing:
            return forward(*args, **kwargs)
        if re.search("(batch|group|instance|layer)norm", kind(m)) and not _children(m):
            affine = m._parameters.get("bias") is not None  # getattr would be traced
            if self._leave_out(self.path_of_module(m), kind(m), args[0], affine):
                return args[0]
        last, stack = next(iter(reversed(self.graph.nodes)), None), self.module_stack.copy()
        norms = list(self.found.norms)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            name = self.path_of_module(m)
            if self.is_leaf_module(m, name):
                raise
            # what was traced of it is taken back, and it becomes one operation
            self.module_stack, self.found.norms = stack, norms
            self._forget_after(last)
            self.found.opaque[name] = f"cannot be traced ({type(error).__name__}: {str(error)[:100]})"
            return super().call_module(m, forward, args, kwargs)

    def _forget_after(self, last):
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.found.values.pop(node, None)
            for name in [n for n, proxy in self._cache.items() if proxy.node is node]:
                del self._cache[name]
            self.graph.erase_node(node)

    def _leave_out(self, name, what, x, affine):
        """Whether a normalization of x is left out: not of tokens, (N, T, C)."""
        if not isinstance(x, fx.Proxy) or self.found.values[x.node].dim() not in (2, 4):
            return False
        self.found.norms.append(Norm(name, what, x.node, affine))
        return True

    def create_proxy(self, op, target, args, kwargs, *rest, **more):
        if op == "call_function" and kind(target) in NORM_FUNCTIONS and args:
            path = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
            # (x, statistics, statistics, weight, bias) or (x, shape, weight, bias)
            at = 4 if kind(target) in ("batchnorm", "instancenorm") else 3
            affine = kwargs.get("bias", next(iter(args[at : at + 1]), None)) is not None
            # weight standardisation normalizes weights
            is_signal = isinstance(args[0], fx.Proxy) and args[0].node in self._signal
            if is_signal and self._leave_out(path or target.__name__, kind(target), args[0], affine):
                return args[0]
        proxy = super().create_proxy(op, target, args, kwargs, *rest, **more)
        if op != "output":
            self.found.values[proxy.node] = self._compute(op, target, args, kwargs)
        if op == "placeholder" or not self._signal.isdisjoint(proxy.node.all_input_nodes):
            self._signal.add(proxy.node)
        return proxy

    @torch.no_grad()
    def _compute(self, op, target, args, kwargs):
        def value(x):
            return self.found.values[x.node] if isinstance(x, fx.Proxy) else x

        args, kwargs = map_aggregate(args, value), map_aggregate(kwargs, value)
        self._computing = True
        try:
            if op == "placeholder":
                return self._inputs.pop(0) if self._inputs else next(iter(args), None)
            if op == "get_attr":
                path, _, name = target.rpartition(".")
                return getattr(self.root.get_submodule(path), name)
            if op == "call_module":
                return self.root.get_submodule(target)(*args, **kwargs)
            if op == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)
        finally:
            self._computing = False


def _children(module):
    return [child for child in module.children() if not isinstance(child, nn.Identity)]
