import torch

from benchmarks.launches import CountLaunches, launches, measure_launches
from benchmarks.options import Options


def test_operators_are_counted_and_views_are_not():
    x = torch.ones(4, 6, requires_grad=True)
    with CountLaunches() as counted:
        y = (x.view(2, 12).T @ torch.empty(2, 3)).sum()
        y.backward()
    # the backward pass: that of the sum is a view, then one product; the gradient of a leaf is kept as it is
    assert counted.names == ["mm", "sum", "ones_like", "mm"]


def test_the_first_call_does_not_count():
    calls = []

    def step():
        if not calls:
            torch.ones(3) + 1
        calls.append(torch.ones(3) * 2)

    assert launches(step) == 2  # ones and mul
    assert len(calls) == 2


def test_part():
    penalty, step, optimizer = measure_launches(Options(depth=8), 0)
    counts = {row["penalty"]: row["launches"] for row in penalty.rows}
    assert counts["iso_d2, mode paper"] < counts["paper's form"]
    assert [row["network"] for row in step.rows] == ["R-ISONet-8", "ResNet-8 BN"]
    by_clipping = {row["clipping"]: row for row in optimizer.rows}
    assert by_clipping["norm"]["launches"] - by_clipping["none"]["launches"] <= 10
    assert by_clipping["norm"]["Detectron2's"] > 4 * by_clipping["norm"]["launches"]
