"""What the machine can do at best, and the times below which float32 products keep the penalty and a step."""

import torch
from fvcore.nn import FlopCountAnalysis

from iso_d2.isometry import orthogonality_multiply_adds

from .networks import isonet, penalised_convs
from .report import Table
from .timing import compare

# The matrix products that are measured: batch, rows, columns, inner size
PRODUCT = (4, 1024, 1024, 1024)
# Bytes that are copied
COPY = 2**28


def measure_machine(options, seconds):
    """The part "machine": list[Table], the rates and the floors that follow from them."""
    batch, rows, columns, inner = PRODUCT
    a = torch.randn(batch, rows, inner, device=options.device)
    b = torch.randn(batch, inner, columns, device=options.device)
    product = a.new_empty(batch, rows, columns)
    source = torch.zeros(COPY // 4, device=options.device)
    target = torch.empty_like(source)
    cases = {"products": lambda: torch.bmm(a, b, out=product), "copy": lambda: target.copy_(source)}
    measured = compare(cases, options.repeats, seconds)
    rate = measured.per_second("products", batch * rows * columns * inner / 1e9)
    bandwidth = measured.per_second("copy", 2 * COPY / 1e9)
    rates = [
        {"rate": "float32 matrix products, 1e9 multiply-adds a second", "measured": rate},
        {"rate": "memory, GB a second, read and written", "measured": bandwidth},
    ]
    net, images = isonet(options), options.images()
    counter = FlopCountAnalysis(net.eval(), images).unsupported_ops_warnings(False)
    forward = counter.uncalled_modules_warnings(False).total()
    work = {
        "penalty, value and gradient": sum(map(orthogonality_multiply_adds, penalised_convs(net))),
        f"convolutions forward, {'x'.join(map(str, images.shape))}": forward,
        "convolutions forward and backward": 3 * forward,
    }
    floors = [
        {"work": name, "1e9 multiply-adds": count / 1e9, "floor, ms": count / 1e6 / rate["median"]}
        for name, count in work.items()
    ]
    return [
        Table(f"What the machine does at best, n = {measured.n}", rates),
        Table("Floors at that rate of products, for products in float32", floors),
    ]
