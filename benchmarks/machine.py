"""What the machine can do at best, and the times below which float32 products keep the penalty and a step."""

import torch
from torch.utils.flop_counter import FlopCounterMode

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
    precision = {"precision": options.penalty_precision}
    rates = [
        {"rate": "matrix products, 1e9 multiply-adds a second", "measured": rate, **precision},
        {
            "rate": "memory, GB a second, read and written",
            "measured": measured.per_second("copy", 2 * COPY / 1e9),
            **precision,
        },
    ]
    net, images = isonet(options), options.images()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images)
    forward = counter.get_total_flops() / 2  # it counts a multiply-add as two
    work = {
        "penalty, value and gradient": sum(map(orthogonality_multiply_adds, penalised_convs(net))),
        f"convolutions forward, {'x'.join(map(str, images.shape))}": forward,
        "convolutions forward and backward": 3 * forward,
    }
    floors = [
        {"work": name, "1e9 multiply-adds": n / 1e9, "floor, ms": n / 1e6 / rate["median"], **precision}
        for name, n in work.items()
    ]
    return [
        Table(f"What the machine does at best, n = {measured.n}", rates),
        Table("Floors at that rate of products", floors),
    ]
