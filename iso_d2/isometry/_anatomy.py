"""What the operations of a traced network are to it: layers, activations, gates, branches, outputs."""

import operator
from dataclasses import dataclass

import torch
from torch import fx

from ._tracing import ACTIVATIONS, GATES, Trace, kind

# What the functions F.conv2d, F.conv_transpose2d and F.linear take after input, weight and bias
SIGNATURES = {
    "conv2d": ("stride", "padding", "dilation", "groups"),
    "convtranspose2d": ("stride", "padding", "output_padding", "groups", "dilation"),
    "linear": (),
}
OPTIONS = {what: (*names, "padding_mode") if names else () for what, names in SIGNATURES.items()}
UPSAMPLING = {"interpolate", "upsample", "upsamplingnearest2d", "upsamplingbilinear2d", "pixelshuffle"}
AVERAGES = {"adaptiveavgpool2d", "avgpool2d", "mean"}
# What hands the values of its first argument on
PASSING = {"identity", "flatten", "view", "reshape", "squeeze", "contiguous"}
NOT_ISOMETRIC = {
    "scaleddotproductattention": "attention",
    "shiftedwindowattention": "attention",
    "multiheadattentionforward": "attention",
    "matmul": "a product of two signals, as in attention",
    "bmm": "a product of two signals, as in attention",
    "einsum": "a product of two signals, as in attention",
    "layernorm": "a normalization of tokens",
    "rmsnorm": "an unknown normalization",
    "normalize": "an unknown normalization",
    "localresponsenorm": "an unknown normalization",
    "conv1d": "a convolution of one dimension",
    "conv3d": "a convolution of three dimensions",
    "deformconv2d": "a deformable convolution",
}


@dataclass
class Layer:
    """A convolution or linear layer as the graph calls it."""

    name: str
    kind: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    options: dict


class Anatomy:
    """The parts of a traced network.

    Attributes:
        kinds (dict[Node, str]): what each node does, as :func:`~iso_d2.isometry._tracing.kind` names it.
        gates (set[Node]): what computes the factors of a product, down to the sigmoid or softmax.
        layers (dict[Node, Layer]): convolutions and linear layers outside gates; those called several times
            are there several times.
        activations (list[Node]): those outside gates.
        concatenations (set[Node]): of the channels of signals, outside gates.
        outputs (set[Node]): layers after which neither a layer nor an activation comes.
        left (dict[str, str]): what cannot be isometric, by name, and why.
    """

    def __init__(self, root, found: Trace):
        self.root, self.values = root, found.values
        self.nodes = list(found.graph.nodes)
        for node in self.nodes:
            if not node.args and "input" in node.kwargs:
                node.args, node.kwargs = (node.kwargs["input"],), {**node.kwargs}
                node.kwargs = {name: x for name, x in node.kwargs.items() if name != "input"}
        self.kinds = {node: self._kind(node) for node in self.nodes}
        self.left = dict(found.opaque)
        self.gates = self._find_gates()
        self.layers = {}
        self.activations = []
        for node in self.nodes:
            if node not in self.gates:
                self._classify(node)
        self._index = {node: i for i, node in enumerate(self.nodes)}
        self._above = {}  # as bits: the node itself and what it depends on
        for i, node in enumerate(self.nodes):
            self._above[node] = 1 << i
            for source in node.all_input_nodes:
                self._above[node] |= self._above[source]
        self._inputs = self._bits(node for node in self.nodes if node.op == "placeholder")
        upsampling = UPSAMPLING | {"convtranspose2d"}
        self._enlarging = self._bits(node for node in self.nodes if self.kinds[node] in upsampling)
        self._parts = self._bits(self.layers), self._bits(self.activations)
        normalized = {norm.reads for norm in found.norms}
        self.concatenations = {node for node in self.nodes if self._is_concatenation(node)}
        self.outputs = {node for node in self.layers if node not in normalized and not self._leads_on(node)}

    def name_of(self, node):
        """The dotted name of the module that a node calls or, of a function, that calls it."""
        if node.op == "call_module":
            return node.target
        stack = node.meta.get("nn_module_stack")
        return next(reversed(stack.values()))[0] if stack else ""

    def is_signal(self, x):
        """Whether an argument is a tensor that depends on the network's input."""
        is_tensor = isinstance(x, fx.Node) and isinstance(self.values.get(x), torch.Tensor)
        return is_tensor and self._above[x] & self._inputs != 0

    def source(self, node):
        """The node whose values reach this one unchanged."""
        while self.kinds.get(node) in PASSING or "drop" in self.kinds.get(node, ""):
            node = node.args[0]
        return node

    def reads_activation(self, node):
        return self._above[node] & self._parts[1] != 0

    def channel_axis(self, node):
        """1, or -1 where the nearest layer before is linear."""
        while node.op != "placeholder" and node not in self.layers and self.kinds[node] != "permute":
            node = next(iter(node.all_input_nodes))
        return -1 if self.kinds[node] == "linear" else 1

    def averaged(self, node):
        """How many values are averaged to one in what a layer reads: 1 where it reads no average."""
        pool = self.source(node.args[0])
        if self.kinds[pool] not in AVERAGES:
            return 1
        return self.values[pool.args[0]].numel() // self.values[pool].numel()

    def join(self, node):
        """What a sum of signals of one shape is.

        Returns:
            int or str or None: the position of the branch in the arguments of a residual sum; "merge" for
            other sums of signals, and for a stack of them that is only summed; None for all else.
        """
        if self.kinds[node] == "stack" and node not in self.gates:
            is_sum = {self.kinds[user] for user in node.users} == {"sum"}
            return "merge" if is_sum and all(map(self.is_signal, node.args[0])) else None
        if self.kinds[node] != "add" or node in self.gates or len(node.args) != 2 or node.kwargs:
            return None
        if not all(map(self.is_signal, node.args)):
            return None
        if len({self.values[x].shape for x in node.args}) > 1:
            return None
        above = [self._above[x] for x in node.args]
        own = above[0] & ~above[1], above[1] & ~above[0]
        if (own[0] | own[1]) & self._enlarging == 0:
            for parts in self._parts:
                branches = [i for i in (0, 1) if own[i] & parts]
                if len(branches) == 1:
                    return branches[0]
        return "merge"

    def origin(self, node):
        """Where a signal comes from whose mean square is known: "layer", "activation" after one, or None."""
        node = self.source(node)
        after = node in self.activations
        first = self.source(node.args[0]) if after else node
        if first not in self.layers or first in self.outputs:
            return None
        return "activation" if after else "layer"

    def _kind(self, node):
        if node.op == "call_module":
            return kind(self.root.get_submodule(node.target))
        name = kind(node.target)
        if node.op == "call_function" and node.target in (operator.iadd, operator.imul):
            return name[1:]
        return {"concat": "cat", "concatenate": "cat"}.get(name, name)

    def _find_gates(self):
        """The nodes of which only a sigmoid or softmax makes use that is multiplied with the signal."""
        gates = set()
        for node in self.nodes:
            hard = self.kinds[node] == "relu6" and self.kinds.get(node.args[0]) == "add"
            hard = hard and not isinstance(node.args[0].args[1], fx.Node)  # relu6(x + 3) / 6
            if (self.kinds[node] in GATES or hard) and self._is_factor(node):
                gates.add(node)
        for node in reversed(self.nodes):
            if node.op != "placeholder" and node.users and gates.issuperset(node.users):
                gates.add(node)
        return gates

    def _is_factor(self, node):
        ends = ACTIVATIONS | GATES | set(SIGNATURES) | {"cat", "add", "output"}
        seen, front = set(), [node]
        while front:
            for user in set(front.pop().users) - seen:
                if self.kinds[user] == "mul":
                    return True
                if self.kinds[user] not in ends:
                    seen.add(user)
                    front.append(user)
        return False

    def _classify(self, node):
        what, name = self.kinds[node], self.name_of(node)
        value = self.values.get(node)
        if what in SIGNATURES or what in ACTIVATIONS:
            found = self._layer(node, name) if what in SIGNATURES else node
            dims = value.dim() if isinstance(value, torch.Tensor) else 0
            if dims not in (2, 4):
                self.left[name] = f"{what} of values with {dims} dimensions"
            elif isinstance(found, str):
                self.left[name] = found
            elif what in ACTIVATIONS:
                self.activations.append(node)
            else:
                self.layers[node] = found
        elif what in NOT_ISOMETRIC and node.op != "call_module":
            self.left[name or what] = NOT_ISOMETRIC[what]
        elif node.op == "call_module":
            module = self.root.get_submodule(name)
            if what in NOT_ISOMETRIC or next(module.parameters(), None) is not None:
                self.left.setdefault(name, NOT_ISOMETRIC.get(what, type(module).__name__))

    def _layer(self, node, name):
        """The layer of a node; as a str, why it cannot become an isometric one."""
        what = self.kinds[node]
        if node.op == "call_module":
            module = self.root.get_submodule(name)
            if hasattr(module, "parametrizations") or module._forward_pre_hooks:
                return "a layer with a parametrization of its weight"
            options = {key: getattr(module, key) for key in OPTIONS[what]}
            return Layer(name, what, module.weight, module.bias, options)
        names = ("input", "weight", "bias", *SIGNATURES[what])
        options = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        weight, bias = options.pop("weight"), options.pop("bias", None)
        if weight.op != "get_attr" or not weight.target.endswith(".weight"):
            return "a layer whose weight is computed"
        if set(node.all_input_nodes) - {options.pop("input"), weight, bias}:
            return "a layer whose geometry is computed"
        name = weight.target.removesuffix(".weight")
        return Layer(name, what, self.values[weight], self.values.get(bias), options)

    def _is_concatenation(self, node):
        """Of the channels of several signals."""
        if self.kinds[node] != "cat" or node in self.gates or not isinstance(node.args[0], (list, tuple)):
            return False
        if len(node.args[0]) < 2:
            return False
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        dims = self.values[node].dim()
        return dims in (2, 4) and dim % dims == 1 and all(map(self.is_signal, node.args[0]))

    def _leads_on(self, node):
        mask = 1 << self._index[node]
        return any(self._above[n] & mask for n in (*self.layers, *self.activations) if n is not node)

    def _bits(self, nodes):
        return sum(1 << self._index[node] for node in nodes)
