"""What the machine can do at best, and the times below which float32 products keep the penalty and a step."""

import torch
from fvcore.nn import FlopCountAnalysis

from ..isometry import orthogonality_multiply_adds
from .networks import isonet, penalised_convs
from .report import Table
from .timing import compare, quartiles

# The matrix products that are measured: batch, rows, columns, inner size
PRODUCT = (4, 1024, 1024, 1024)
# Bytes that are copied
COPY = 2**28


def floor_milliseconds(multiply_adds, rate):
    """Time of so many multiply-adds at a rate in multiply-adds a second, in ms."""
    return 1000 * multiply_adds / rate


def measure_machine(options, seconds):
    """The part "machine": list[Table], the rates and the floors that follow from them."""
    batch, rows, columns, inner = PRODUCT
    a = torch.randn(batch, rows, inner, device=options.device)
    b = torch.randn(batch, inner, columns, device=options.device)
    product = a.new_empty(batch, rows, columns)
    source = torch.zeros(COPY // 4, device=options.device)
    target = torch.empty_like(source)
    cases = {"products": lambda: torch.bmm(a, b, out=product), "copy": lambda: target.copy_(source)}
    measured = compare(cases, options.repeats, seconds, options.device)
    multiply_adds = batch * rows * columns * inner
    rate = quartiles([multiply_adds / time for time in measured.times["products"]])
    bandwidth = quartiles([2 * COPY / time for time in measured.times["copy"]])
    rates = [
        {"rate": "float32 matrix products, 1e9 multiply-adds a second", "measured": _scaled(rate, 1e-9)},
        {"rate": "memory, GB a second, read and written", "measured": _scaled(bandwidth, 1e-9)},
    ]
    return [
        Table(f"What the machine does at best, n = {measured.n}", rates),
        Table("Floors at that rate of products, for products in float32", _floors(options, rate["median"])),
    ]


def _floors(options, rate):
    net, images = isonet(options), options.images()
    counter = FlopCountAnalysis(net.eval(), images).unsupported_ops_warnings(False)
    forward = counter.uncalled_modules_warnings(False).total()
    penalty = sum(orthogonality_multiply_adds(conv) for conv in penalised_convs(net))
    work = {
        "penalty, value and gradient": penalty,
        f"convolutions forward, {'x'.join(map(str, images.shape))}": forward,
        "convolutions forward and backward": 3 * forward,
    }
    return [
        {
            "work": name,
            "1e9 multiply-adds": count / 1e9,
            "floor, ms": floor_milliseconds(count, rate),
        }
        for name, count in work.items()
    ]


def _scaled(values, factor):
    return {name: value * factor for name, value in values.items()}
