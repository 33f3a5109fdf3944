"""SReLU against ReLU, batch norm with ReLU, and its plain form in autograd."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from iso_d2.isometry import SReLU, use_triton_srelu

from .networks import PlainSReLU
from .options import DTYPES
from .report import Table
from .timing import compare


class _Lent(torch.autograd.Function):
    """A buffer as the output of an operation before, so that it may be changed in place like one."""

    @staticmethod
    def forward(ctx, buffer, _):
        return buffer.data  # the same memory, but neither an input nor a view of one

    @staticmethod
    def backward(ctx, grad):
        return None, grad


def forward_and_backward(operator, x, residual=None):
    """A function that applies an operator to x, or to x and a residual, and returns their gradients.

    Those of the operator's parameters come last. The operator may change x in place.
    """
    # Stands for x as the variable to differentiate by, without memory of its own
    source = torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape).requires_grad_()
    residuals = [] if residual is None else [residual.requires_grad_()]
    parameters = list(operator.to(x.device).parameters()) if isinstance(operator, nn.Module) else []
    upstream = torch.ones_like(x)

    def run():
        out = operator(_Lent.apply(x, source), *residuals)
        return torch.autograd.grad(out, [source, *residuals, *parameters], upstream)

    return run


class TritonSReLU(SReLU):
    """SReLU with its Triton kernels, which are off otherwise."""

    def forward(self, x, residual=None):
        use_triton_srelu()
        try:
            return super().forward(x, residual)
        finally:
            use_triton_srelu(False)


def shapes(options):
    """The activations of a ResNet's stages, list[tuple[int, int, int, int]]; batch norm needs some pixels."""
    height, width = options.size
    return [
        (options.batch, channels, max(2, height // stride), max(2, width // stride))
        for channels, stride in ((64, 2), (256, 4), (1024, 16), (2048, 32))
    ]


def operators(channels, with_triton=False):
    """Two dicts by name, of operators of x and of operators of x and residual; SReLU is the first of each."""
    alone = {
        "SReLU": SReLU(channels, inplace=True),
        "nn.ReLU in place": nn.ReLU(inplace=True),
        "batch norm, ReLU in place": nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
        "relu(x - b) + b": PlainSReLU(channels),
    }
    summed = {
        "SReLU of a sum": SReLU(channels, inplace=True),
        "sum, ReLU in place": lambda x, residual: F.relu_(x.add_(residual)),
        "sum, relu(x - b) + b": PlainSReLU(channels),
    }
    if with_triton:
        alone["SReLU, Triton"] = TritonSReLU(channels, inplace=True)
        summed["SReLU of a sum, Triton"] = TritonSReLU(channels, inplace=True)
    return alone, summed


def measure_activation(options, seconds):
    """The part "activation": list[Table]."""
    cases = [(shape, options) for shape in shapes(options)]
    if not options.channels_last:
        cases.append((shapes(options)[1], replace(options, channels_last=True)))
    tables = []
    for shape, as_laid in cases:
        alone, summed = operators(shape[1], with_triton=options.device == "cuda")
        rows = _rows(alone, 0, shape, as_laid, seconds / len(cases) / 2)
        rows += _rows(summed, 1, shape, as_laid, seconds / len(cases) / 2)
        tables.append(Table(f"Activation, forward and backward, {as_laid.describe(shape)}", rows))
    return tables


def _rows(kind, residuals, shape, options, seconds):
    generator = torch.Generator().manual_seed(options.seed)

    def draw():
        drawn = torch.randn(shape, generator=generator).to(options.device, DTYPES[options.dtype])
        return drawn.contiguous(memory_format=options.memory_format)

    cases = {
        name: forward_and_backward(operator, *(draw() for _ in range(1 + residuals)))
        for name, operator in kind.items()
    }
    return compare(cases, options.repeats, seconds).rows(next(iter(cases)), "operator")
