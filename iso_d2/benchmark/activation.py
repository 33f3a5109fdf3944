"""SReLU against ReLU, batch norm with ReLU, and its plain form in autograd."""

import torch
from torch import nn
from torch.nn import functional as F

from ..isometry import SReLU
from .networks import PlainSReLU
from .options import DTYPES
from .report import Table
from .timing import compare


class _Lent(torch.autograd.Function):
    """A buffer as the output of an operation before, so that it may be changed in place like one."""

    @staticmethod
    def forward(ctx, buffer, _):
        place = buffer.storage_offset(), buffer.shape, buffer.stride()
        return torch.empty(0, dtype=buffer.dtype, device=buffer.device).set_(buffer.untyped_storage(), *place)

    @staticmethod
    def backward(ctx, grad):
        return None, grad


def forward_and_backward(operator, x, residual=None):
    """A function that applies an operator and takes its gradients.

    Args:
        operator (callable): x, or x and residual -> Tensor of x's shape; may change x in place.
        x (Tensor): float, on any device; its content is overwritten by an operator in place.
        residual (Tensor or None): of the same shape.

    Returns:
        callable: without arguments -> gradients of x, of the residual if there is one, and of the operator's
        parameters.
    """
    # Stands for x as the variable to differentiate by, without memory of its own
    source = torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape).requires_grad_()
    wanted = [source]
    if residual is not None:
        residual = residual.requires_grad_()
        wanted.append(residual)
    if isinstance(operator, nn.Module):
        wanted += list(operator.parameters())
    upstream = torch.ones_like(x)

    def run():
        out = operator(_Lent.apply(x, source), *([] if residual is None else [residual]))
        return torch.autograd.grad(out, wanted, upstream)

    return run


def shapes(options):
    """The activations of a ResNet's stages, list[tuple[int, int, int, int]]; batch norm needs some pixels."""
    height, width = options.size
    return [
        (options.batch, channels, max(2, height // stride), max(2, width // stride))
        for channels, stride in ((64, 2), (256, 4), (1024, 16), (2048, 32))
    ]


def operators(channels, options):
    """Two dicts by name, of operators of x and of operators of x and residual; SReLU is the first of each."""
    srelus = [SReLU(channels, inplace=True).to(options.device) for _ in range(2)]
    norm = nn.BatchNorm2d(channels).to(options.device)
    alone = {
        "SReLU": srelus[0],
        "nn.ReLU in place": nn.ReLU(inplace=True),
        "batch norm, ReLU in place": nn.Sequential(norm, nn.ReLU(inplace=True)),
        "relu(x - b) + b": PlainSReLU(SReLU(channels).to(options.device)),
    }
    plain = PlainSReLU(SReLU(channels).to(options.device))
    summed = {
        "SReLU of a sum": srelus[1],
        "sum, ReLU in place": lambda x, residual: F.relu_(x.add_(residual)),
        "sum, relu(x - b) + b": _PlainSum(plain),
    }
    return alone, summed


class _PlainSum(nn.Module):
    def __init__(self, srelu):
        super().__init__()
        self.srelu = srelu

    def forward(self, x, residual):
        return self.srelu(x + residual)


def measure_activation(options, seconds):
    """The part "activation": list[Table]."""
    cases = [(shape, options.memory_format) for shape in shapes(options)]
    if not options.channels_last:
        cases.append((shapes(options)[1], torch.channels_last))
    tables = []
    for shape, memory_format in cases:
        rows = []
        for kind, with_residual in zip(operators(shape[1], options), (False, True), strict=True):
            rows += _rows(kind, with_residual, shape, memory_format, options, seconds / len(cases) / 2)
        layout = ", channels last" if memory_format is torch.channels_last else ""
        size = "x".join(map(str, shape))
        tables.append(Table(f"Activation, forward and backward, {size} {options.dtype}{layout}", rows))
    return tables


def _rows(kind, with_residual, shape, memory_format, options, seconds):
    generator = torch.Generator().manual_seed(options.seed)

    def draw():
        drawn = torch.randn(shape, generator=generator).to(options.device, DTYPES[options.dtype])
        return drawn.contiguous(memory_format=memory_format)

    runs = {
        name: forward_and_backward(operator, draw(), draw() if with_residual else None)
        for name, operator in kind.items()
    }
    measured = compare(runs, options.repeats, seconds, options.device)
    ours = next(iter(runs))
    return [
        {
            "operator": name,
            "ms": measured.milliseconds(name),
            "SReLU's time over it": None if name == ours else measured.ratio(ours, name),
            "n": measured.n,
        }
        for name in runs
    ]
