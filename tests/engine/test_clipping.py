import math

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from iso_d2.config import add_iso_config
from iso_d2.engine import build_optimizer
from iso_d2.engine.clipping import AdaptiveClipper
from iso_d2.isometry import SReLU


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        SReLU(4),
        nn.Conv2d(4, 4, (1, 3), groups=2),
        nn.ConvTranspose2d(4, 2, 2),
        nn.Linear(2, 3),
    ).double()


def with_gradients(net, size=1.0):
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.grad = size * torch.randn_like(parameter)
    return [parameter.grad.clone() for parameter in net.parameters()]


def test_each_unit_by_hand():
    net = make_net()
    with torch.no_grad():
        net[0].weight[1] = 0  # may still leave 0
    before = with_gradients(net)
    net[2].weight.grad[0] = 0
    before[3][0] = 0
    AdaptiveClipper(net, 0.1)()
    for (name, parameter), old in zip(net.named_parameters(), before, strict=True):
        if parameter.dim() == 1 or name.startswith("4."):
            assert torch.equal(parameter.grad, old), name
            continue
        for weight, gradient, new in zip(parameter.detach(), old, parameter.grad, strict=True):
            norm = math.sqrt(sum(x * x for x in gradient.flatten().tolist()))
            allowed = 0.1 * max(math.sqrt(sum(x * x for x in weight.flatten().tolist())), 1e-3)
            factor = min(1, allowed / norm) if norm else 1
            torch.testing.assert_close(new, gradient * factor)


def test_small_gradients_stay_as_they_are():
    net = make_net()
    before = with_gradients(net, 1e-6)
    AdaptiveClipper(net, 0.1)()
    assert all(torch.equal(p.grad, old) for p, old in zip(net.parameters(), before, strict=True))


def test_a_nan_is_not_hidden():
    net = make_net()
    with_gradients(net)
    net[0].weight.grad[0, 0, 0, 0] = math.nan
    AdaptiveClipper(net, 0.1)()
    assert net[0].weight.grad[0].isnan().all() and not net[0].weight.grad[1].isnan().any()


@pytest.mark.parametrize("also_by_norm", [False, True])
def test_the_optimizer_clips_before_its_step(also_by_norm):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 1.0, 0.0, 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ADAPTIVE = 0.05
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = also_by_norm, "norm"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    net, expected = make_net(), make_net()
    optimizer = build_optimizer(cfg, net)
    with_gradients(net, 100)
    with_gradients(expected, 100)
    optimizer.step()
    AdaptiveClipper(expected, 0.05)()
    for ours, other in zip(net.parameters(), expected.parameters(), strict=True):
        if not other.requires_grad:
            continue
        if also_by_norm:
            nn.utils.clip_grad_norm_(other, 0.01)
        torch.testing.assert_close(ours, other - other.grad)


@pytest.mark.parametrize("clipping", [-0.1, math.nan, math.inf])
def test_what_is_no_clipping(clipping):
    with pytest.raises(ValueError, match="ADAPTIVE must be a finite number above 0"):
        AdaptiveClipper(make_net(), clipping)
