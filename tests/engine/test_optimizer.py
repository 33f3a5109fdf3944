import math

import pytest
import torch
from detectron2.solver import build_lr_scheduler
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from iso_d2.engine import build_optimizer
from iso_d2.engine.optimizer import AdaptiveClipper, GradientClipper
from iso_d2.engine.setup import load_config
from iso_d2.isometry import SharedScale, SReLU, orthogonality_losses
from iso_d2.modeling import ISONet


class Net(nn.Module):
    """Parameters of ours, and of others that have the same names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.srelu = SReLU(4)
        self.fixed = SReLU(4, learnable=False)
        self.shared = SharedScale()
        self.others = nn.Module()
        self.others.scale = nn.Parameter(torch.ones(1))
        self.others.threshold = nn.Parameter(torch.ones(4))


CLIP_TYPE = ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE",)


def config(*opts):
    rates = ("SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 1e-4, "SOLVER.WEIGHT_DECAY_NORM", 1e-5)
    return load_config(opts=[*rates, *opts])


def settings(optimizer, model, key):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group[key] for group in optimizer.param_groups for p in group["params"]}


def test_only_thresholds_and_scales_differ():
    model = Net()
    optimizer = build_optimizer(config("SOLVER.MOMENTUM", 0.8, "SOLVER.NESTEROV", True), model)
    assert settings(optimizer, model, "weight_decay") == {
        "conv.weight": 1e-4,
        "conv.bias": 1e-4,
        "norm.weight": 1e-5,
        "norm.bias": 1e-5,
        "srelu.threshold": 0.0,
        "shared.scale": 1e-4,
        "others.scale": 1e-4,
        "others.threshold": 1e-4,
    }
    rates = settings(optimizer, model, "lr")
    assert rates.pop("shared.scale") == pytest.approx(0.01)
    assert set(rates.values()) == {0.1}
    assert {(g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(0.8, True)}
    assert len(optimizer.param_groups) == 4


def test_keys_of_detectron2_and_of_iso_d2_are_heeded():
    model = Net()
    opts = ["SOLVER.SRELU_WEIGHT_DECAY", 0.5, "SOLVER.SCALE_LR_FACTOR", 2.0]
    cfg = config(*opts, "SOLVER.BIAS_LR_FACTOR", 3.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.25)
    optimizer = build_optimizer(cfg, model)
    rates = settings(optimizer, model, "lr")
    decays = settings(optimizer, model, "weight_decay")
    assert rates["shared.scale"] == pytest.approx(0.2)
    assert rates["conv.bias"] == pytest.approx(0.3)
    assert (decays["srelu.threshold"], decays["conv.bias"]) == (0.5, 0.25)


def test_frozen_parameters_are_left_out():
    model = Net()
    model.srelu.requires_grad_(False)
    model.shared.requires_grad_(False)
    names = settings(build_optimizer(config(), model), model, "lr")
    assert not {"srelu.threshold", "shared.scale", "fixed.threshold"} & set(names)


def test_the_ratio_stays_through_warmup_and_decay():
    model = Net()
    cfg = config(
        "SOLVER.WARMUP_ITERS", 4, "SOLVER.WARMUP_FACTOR", 0.2, "SOLVER.STEPS", (6,), "SOLVER.MAX_ITER", 8
    )
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    seen = []
    for _ in range(8):
        rates = settings(optimizer, model, "lr")
        seen.append((rates["conv.weight"], rates["shared.scale"]))
        optimizer.step()
        scheduler.step()
    # Linear from 0.2 to 1 over 4 steps, then 1, from step 6 on 0.1
    base = [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.01, 0.01]
    assert [rate for rate, _ in seen] == pytest.approx(base)
    assert [rate for _, rate in seen] == pytest.approx([0.1 * rate for rate in base])


def test_gradient_clipping():
    model = Net()
    cfg = config(
        "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5, "SOLVER.MOMENTUM", 0.0
    )
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    assert model.shared.scale.item() == pytest.approx(-0.01 * 0.5)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("norm", [[[1.5, 2.0]], [[0.5]]]),  # norms 5 and 0.5
        ("value", [[[2.5, 2.5]], [[0.5]]]),
        ("full_model", [[[3 / 2.01, 4 / 2.01]], [[0.5 / 2.01]]]),  # 5.025 together
    ],
)
def test_clipping_by_hand(kind, expected):
    weights = [nn.Parameter(torch.zeros(1, n)) for n in (2, 1, 3)]
    for weight, gradient in zip(weights, ([[3.0, 4.0]], [[0.5]]), strict=False):
        weight.grad = torch.tensor(gradient)
    optimizer = torch.optim.SGD(weights, lr=1.0)
    GradientClipper(kind, 2.5)(optimizer)
    assert weights[2].grad is None
    for weight, gradient in zip(weights, expected, strict=False):
        torch.testing.assert_close(weight.grad, torch.tensor(gradient), rtol=1e-3, atol=0)


def test_clipping_by_another_norm():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    cfg = config("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm")
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 1.0, 0.0, 0.0
    model = nn.Module()
    model.weight = weight
    build_optimizer(cfg, model).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.1 * 3 / 7, -0.1 * 4 / 7]))
    with pytest.raises(ValueError, match="CLIP_TYPE must be norm, value or full_model, got 'all'"):
        build_optimizer(config("SOLVER.CLIP_GRADIENTS.ENABLED", True, *CLIP_TYPE, "all"), model)


class CountOperators(TorchDispatchMode):
    """How many operators run within it; views and what only allocates count, too."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators_of_a_step(*opts):
    """For R-ISONet-20 (paper) with its 59 parameters; the second step, which has momenta."""
    net = ISONet(20, True, stem="cifar", num_classes=10)
    optimizer = build_optimizer(config(*opts), net)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with CountOperators() as counter:
        optimizer.step()
    return counter.count


@pytest.mark.parametrize("kind", ["norm", "value", "full_model"])
def test_clipping_takes_few_operators_however_many_parameters(kind):
    clipping = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, *CLIP_TYPE, kind)
    assert operators_of_a_step(*clipping) - operators_of_a_step() <= 12


def test_adaptive_clipping_takes_two_operators_a_weight_and_a_few():
    adaptive = operators_of_a_step("SOLVER.CLIP_GRADIENTS.ADAPTIVE", 0.1)
    # a norm of each of the 21 convolutions and of each gradient; views of the factors count, too
    assert adaptive - operators_of_a_step() <= 4 * 21 + 12


@pytest.mark.parametrize("clip_type", ["norm", "value"])
def test_centred_kernels_stay_centred_whatever_pulls_at_them(clip_type):
    torch.manual_seed(0)
    net = ISONet(8, True, stem="cifar", signal="scaled", centred=True)
    plain = ISONet(8, True, stem="cifar", signal="scaled", centred=True)
    plain.load_state_dict(net.state_dict())
    clipping = [
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.005, "SOLVER.CLIP_GRADIENTS.ADAPTIVE", 0.05),
    ]
    optimizers = [build_optimizer(config(*clipping), net), torch.optim.SGD(plain.parameters(), lr=0.1)]
    images = torch.randn(4, 3, 16, 16)
    for model, optimizer in zip((net, plain), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(images)["res4"].square().mean()
            (loss + orthogonality_losses([net.res2[0].branch.conv1]).sum()).backward()
            optimizer.step()
    kernels = [c.weight for c in net.modules() if getattr(c, "centred", False)]
    assert len(kernels) == 6  # two in each block; neither the stem nor the 1x1 projections
    for kernel in kernels:
        assert kernel.mean((1, 2, 3)).abs().max() < 1e-6
    others = [c.weight for c in plain.modules() if getattr(c, "centred", False)]
    assert max(kernel.mean((1, 2, 3)).abs().max() for kernel in others) > 1e-4


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
    cfg = config("SOLVER.BASE_LR", 1.0, "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0)
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
