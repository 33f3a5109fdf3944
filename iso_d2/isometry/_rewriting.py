"""How a traced network's graph and modules become isometric: what :func:`iso_d2.isometry.isometrize` does."""

import itertools
import math
import operator
from functools import partial

import torch
from torch import fx, nn

from ._anatomy import Anatomy
from .activation import SharedScale, SReLU
from .initialization import centre_, delta_init_, orthogonal_init_
from .scaled import ScaledConv2d, ScaledConvTranspose2d, ScaledLinear, conv_gain

OUT_OF_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}
SCALED = {"conv2d": ScaledConv2d, "convtranspose2d": ScaledConvTranspose2d, "linear": ScaledLinear}
# Weights of a linear layer above which it starts as a random matrix that is not made orthogonal
LARGE = 2**22


class Factor(nn.Module):
    """x * c with a constant c, which the state dict holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x):
        """Any shape -> the same shape and dtype."""
        return x * self.factor


class Rewriting:
    """Changes the graph of a trace, and the modules of its network, in place, and says so in a report.

    Attributes:
        measured (dict[str, callable]): by a module's name, what to call with the mean square that it reads.
    """

    def __init__(self, network, found, report):
        self.network, self.graph, self.scaled = network, found.graph, report.signal == "scaled"
        self.parts, self.report = Anatomy(network, found), report
        self.report.decisions = sorted(found.decisions)
        self.report.left = self.parts.left
        self.measured = {}
        self._factors = {}
        joins = {node: self.parts.join(node) for node in self.parts.nodes}
        self.residual = [node for node, join in joins.items() if isinstance(join, int)]
        self._out_of_place()
        normalized = {norm.reads for norm in found.norms}
        for node in self.parts.activations:
            self._activate(node, node.args[0] in normalized)
        shifted = {norm.reads for norm in found.norms if norm.shifts}
        for node, layer in self.parts.layers.items():
            self._start(node, layer, adds_bias=self.scaled and node in shifted)
        for node in self.residual:
            self._scale(node, joins[node])
        if self.scaled:
            for node, join in joins.items():
                outer = next(iter(node.users), None)
                if join == "merge" and not (len(node.users) == 1 and joins.get(outer) == "merge"):
                    self._merge(node, joins)
                elif node in self.parts.concatenations:
                    self._concatenate(node)
        named = [self.parts.name_of(node) for node in self.parts.nodes if node in self.parts.gates]
        self.report.gates = list(dict.fromkeys(name for name in named if name))

    def finish(self, class_name):
        """The network of the changed graph: fx.GraphModule."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        for node in [node for node in graph.nodes if node.op == "get_attr" and not node.users]:
            graph.erase_node(node)  # of a normalization
        graph.lint()
        return fx.GraphModule(self.network, graph, class_name)

    def _out_of_place(self):
        """Nothing may change the output of an SReLU, which it keeps for its backward pass."""
        for module in self.network.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            name = getattr(node.target, "__name__", node.target)
            if node.kwargs.get("inplace"):
                node.kwargs = {**node.kwargs, "inplace": False}
            in_place = node.target in OUT_OF_PLACE or (
                node.op in ("call_method", "call_function") and name.endswith("_") and name[-2:] != "__"
            )
            if in_place and self.parts.is_signal(node):
                for user in [user for user in node.args[0].users if order[user] > order[node]]:
                    user.replace_input_with(node.args[0], node)
                if node.target in OUT_OF_PLACE:
                    node.target = OUT_OF_PLACE[node.target]
                elif node.op == "call_method" and hasattr(torch.Tensor, name[:-1]):
                    node.target = name[:-1]
            elif "dropout" in name and node.op == "call_function":
                self._make_dropout(node)

    def _make_dropout(self, node):
        """F.dropout was traced with the answer of `self.training`."""
        p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        classes = {"dropout": nn.Dropout, "dropout2d": nn.Dropout2d, "alphadropout": nn.AlphaDropout}
        if self.parts.kinds[node] in classes:
            self._call(node, self._add(node, "dropout", classes[self.parts.kinds[node]](p)))

    def _activate(self, node, was_normalized):
        name, what = self.parts.name_of(node), self.parts.kinds[node]
        x, value, axis = node.args[0], self.parts.values[node], self.parts.channel_axis(node)
        # what computes x keeps no output for its backward pass
        inplace = len(x.users) == 1 and (x in self.parts.layers or self.parts.kinds[x] == "add")
        srelu = SReLU(value.shape[axis], inplace=inplace).to(value.device, value.dtype)
        if node.op == "call_module" and name not in self.report.activations:
            self._set(name, srelu)
        elif node.op == "call_module":
            name = self._add(node, name.rpartition(".")[2], srelu, name.rpartition(".")[0])
        else:
            name = self._add(node, "srelu", srelu)
        self.report.activations[name] = what
        self._call(node, name)
        known = self.parts.origin(x) or x in self.parts.concatenations
        if self.scaled and was_normalized and not known:
            self._balance(node, x, 1.0)
            x = node.args[0]
        if axis == -1 and value.dim() > 2:
            with self.graph.inserting_before(node):
                node.args = (self.graph.call_function(torch.movedim, (x, -1, 1)),)
            with self.graph.inserting_after(node):
                back = self.graph.call_function(torch.movedim, (node, 1, -1))
            node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)

    def _start(self, node, layer, adds_bias):
        """Replace a layer by one that starts as an isometry, or keep it if it is one of the output."""
        parts, name = self.parts, layer.name
        if name in self.report.layers:
            self._call(node, name)
            return
        if node in parts.outputs:
            self.report.kept.append(name)
            pixels = parts.averaged(node) if layer.kind == "linear" else 1
            if pixels > 1 and self.scaled:
                linear = self._build(layer)
                linear.weight.data.copy_(centre_(layer.weight.detach()))
                if layer.bias is not None:
                    linear.bias.data.copy_(layer.bias.detach())
                linear.gain, linear.centred = pixels ** (0.25 if self.residual else 0.5), True
                self._set(name, linear)
                self._call(node, name)
            return
        if layer.kind == "linear" and not self.scaled:
            return
        module = self._build(layer, adds_bias and layer.bias is None)
        how = self._initialize(module, layer, parts.reads_activation(node))
        self._set(name, module)
        self._call(node, name)
        self.report.layers[name] = how
        if adds_bias and layer.bias is None:
            self.report.biases.append(name)

    def _build(self, layer, adds_bias=False):
        weight, groups = layer.weight, layer.options.get("groups", 1)
        first, second, *kernel_size = weight.shape
        sizes = (first, second * groups) if layer.kind == "convtranspose2d" else (second * groups, first)
        if kernel_size:
            sizes = *sizes, tuple(kernel_size)
        options = {**layer.options, "device": weight.device, "dtype": weight.dtype}
        return SCALED[layer.kind](*sizes, bias=adds_bias or layer.bias is not None, **options)

    def _initialize(self, module, layer, reads_activation):
        """Set a layer's weight and bias, and how its gain is found: str, what was done."""
        weight = module.weight
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if layer.kind == "linear":
            start = torch.empty(weight.shape)
            if weight.numel() > LARGE:  # for time; nearly an isometry where one side is much larger
                weight.data.copy_(start.normal_(std=max(weight.shape) ** -0.5))
            else:
                weight.data.copy_(nn.init.orthogonal_(start))
            gain = math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
            self.measured[layer.name] = partial(_set_gain, module, gain)
            return "random isometry"
        geometry = {"groups": module.groups, "transposed": module.transposed}
        if not self.scaled:
            if module.kernel_size == (7, 7):
                weight.data.copy_(layer.weight.detach())
                return "7x7, kept"
            delta_init_(weight, **geometry)
            return "delta"
        all_taps = max(module.kernel_size) > 1
        if all_taps and weight.shape[1] == 1 and module.stride == (1, 1):
            delta_init_(weight, **geometry)  # an isometry of one channel is a shift
        else:
            orthogonal_init_(weight, module.stride, **geometry, all_taps=all_taps)
        gain = conv_gain(weight.shape, module.stride, **geometry)
        self.measured[layer.name] = partial(_set_gain, module, gain)
        if all_taps and reads_activation and module.groups == 1 and not module.transposed:
            centre_(weight)
            module.centred = True
            return "random isometry, centred"
        return "random isometry"

    def _scale(self, node, branch):
        """Give the branch of a residual sum its scale; a scale of its own for each channel starts at 1."""
        x = self.parts.source(node.args[branch])
        if self.parts.kinds[x] == "mul":
            for factor in x.args:
                factor = self.parts.source(factor) if isinstance(factor, fx.Node) else factor
                if isinstance(factor, fx.Node) and factor.op == "get_attr":
                    nn.init.ones_(self.parts.values[factor])
        scale = SharedScale(1 / math.sqrt(len(self.residual)) if self.scaled else 0.0)
        value = self.parts.values[node]
        name = self._add(node, "scale", scale.to(value.device, value.dtype))
        self.report.scales.append(name)
        with self.graph.inserting_before(node):
            scaled = self.graph.call_module(name, (node.args[branch],))
        node.args = tuple(scaled if i == branch else x for i, x in enumerate(node.args))
        shortcut = node.args[1 - branch]
        if self.scaled and "pool" in self.parts.kinds.get(self.parts.source(shortcut), ""):
            self._balance(node, shortcut, 1.0)

    def _merge(self, node, joins):
        """Give the terms of a sum of k signals a mean square of 1 / k each."""
        terms, sums = [], [node]
        while sums:
            total = sums.pop()
            parts = total.all_input_nodes
            inner = [x for x in parts if joins.get(x) == "merge" and len(x.users) == 1]
            terms += [(total, x) for x in parts if x not in inner]
            sums += inner
        for total, x in terms:
            self._balance(total, x, 1 / len(terms))
        self.report.merges.append(self.parts.name_of(node) or node.name)

    def _concatenate(self, node):
        """Give the parts of a concatenation a mean square of 1, unless they have the same anyway."""
        signals = node.args[0]
        origins = {x: self.parts.origin(x) for x in signals}
        if None in origins.values() or len(set(origins.values())) > 1:
            for x in [x for x, origin in origins.items() if origin != "layer"]:
                self._balance(node, x, 1.0)
            self.report.concatenations.append(self.parts.name_of(node) or node.name)

    def _balance(self, user, x, share):
        """Let a node read x times the constant that gives it a mean square of `share`."""
        if (x, share) not in self._factors:
            factor = Factor().to(self.parts.values[user].device)
            name = self._add(user, "balance", factor)
            self.measured[name] = partial(_set_factor, factor, share)
            with self.graph.inserting_before(user):
                self._factors[x, share] = self.graph.call_module(name, (x,))
        user.replace_input_with(x, self._factors[x, share])

    def _call(self, node, name):
        node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}

    def _add(self, node, name, module, path=None):
        """Add a module beside those that a node's module has: str, its new dotted name."""
        path = self.parts.name_of(node) if path is None else path
        taken = dict(self.network.get_submodule(path).named_children())
        names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
        name = next(n for n in names if n not in taken)
        name = f"{path}.{name}".lstrip(".")
        self._set(name, module)
        return name

    def _set(self, name, module):
        path, _, last = name.rpartition(".")
        setattr(self.network.get_submodule(path), last, module.train(self.network.training))


def _set_gain(module, gain, mean_square):
    module.gain = gain / math.sqrt(mean_square)


def _set_factor(module, share, mean_square):
    module.factor.fill_(math.sqrt(share / mean_square))
