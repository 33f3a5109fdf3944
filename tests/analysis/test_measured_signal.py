import pytest
import torch
from torch import nn

from iso_d2.analysis import measure_signal, signal_faults
from iso_d2.isometry import SReLU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_squares_and_shares_of_clipped_values_by_hand(dtype):
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), SReLU(2, init=-1.0, inplace=True))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1, 1))
    net = net.to(dtype)
    x = torch.tensor([[-1.0, 0.0], [0.25, 3.0]], dtype=dtype).view(1, 1, 2, 2)
    # 2 x: -2, 0, 0.5, 6; -x: 1, 0, -0.25, -3. Clipped: the -2 and the -3
    result = measure_signal(net, x)
    assert list(result) == ["0", "1"]
    assert result["0"] == {"mean_square": pytest.approx(5 * (1 + 0.0625 + 9) / 8)}
    assert result["1"]["held"] == pytest.approx(2 / 8)
    assert result["1"]["mean_square"] == pytest.approx((1 + 0.25 + 36 + 1 + 0.0625 + 1) / 8)
    assert not any(module._forward_hooks for module in net)


def test_the_hooks_are_gone_after_an_error():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(7, 1))
    with pytest.raises(RuntimeError):
        measure_signal(net, torch.zeros(1, 1, 2, 2))
    assert not net[0]._forward_hooks


def test_faults():
    def faults(**clipped):
        return signal_faults({"conv": {"mean_square": 1.0}} | {n: {"held": x} for n, x in clipped.items()})

    assert faults(a=0.001, b=0.5, c=0.99) == []
    assert faults(a=0.0009, b=0.5, c=0.0, d=1.0) == [
        "linear (below 0.1% of the values clipped) at 2 of 4 SReLUs: a, c",
        "dead (above 99% clipped) at 1 of 4 SReLUs: d",
    ]
