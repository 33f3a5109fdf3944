import copy
import math

import pytest
import torch
from torch import nn

from iso_d2.isometry import (
    ScaledConv2d,
    SpectralPenalty,
    conv_singular_values,
    delta_init_,
    orthogonal_init_,
    orthogonality_losses,
)

CONVS = [
    (nn.Conv2d, 3, 5, 3, {}),
    (nn.Conv2d, 5, 3, 3, {"stride": 2}),
    (nn.Conv2d, 4, 6, 1, {"stride": 2}),
    (nn.Conv2d, 4, 6, 3, {"groups": 2}),
    (nn.Conv2d, 2, 4, 4, {"stride": 2}),
    (nn.Conv2d, 3, 3, (2, 3), {}),
    (nn.ConvTranspose2d, 4, 2, 2, {"stride": 2}),
    (nn.ConvTranspose2d, 4, 6, 3, {"groups": 2}),
]


def make(kind, inputs, outputs, size, options):
    conv = kind(inputs, outputs, size, bias=False, **options).double()
    nn.init.normal_(conv.weight, std=0.5)
    return conv


def by_svd(conv, bound):
    """The formula with singular values by SVD at every frequency: of one group, of stride 1 by hand."""
    total = 0
    first = conv.weight.shape[0] // conv.groups
    for group in range(conv.groups):
        weight = conv.weight[group * first : (group + 1) * first].detach()
        (sh, sw), (kh, kw) = conv.stride, weight.shape[2:]
        sh, sw = min(sh, kh), min(sw, kw)
        parts = [weight[:, :, a::sh, b::sw] for a in range(sh) for b in range(sw)]
        height, width = -(-kh // sh), -(-kw // sw)
        parts = [nn.functional.pad(p, (0, width - p.shape[3], 0, height - p.shape[2])) for p in parts]
        transformed = torch.fft.fft2(torch.cat(parts, 1), s=(2 * height - 1, 2 * width - 1))
        largest = torch.linalg.svdvals(transformed.permute(2, 3, 0, 1))[..., 0]
        total += 0.5 * (largest.square() - bound**2).clamp(min=0).square().mean()
    return total


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("bound", [0.7, 1.0])
def test_it_converges_to_the_singular_values(case, bound):
    torch.manual_seed(1)
    conv = make(*case)
    penalty = SpectralPenalty([conv], bound)
    for _ in range(300):
        value = penalty()
    torch.testing.assert_close(value[0], by_svd(conv, bound), rtol=1e-6, atol=1e-9)


def test_the_first_call_is_near_and_never_above():
    convs = [make(*case) for case in CONVS]
    values = SpectralPenalty(convs, 1.0)()
    exact = torch.stack([by_svd(conv, 1.0) for conv in convs])
    assert (values <= exact + 1e-9).all() and (values > 0.7 * exact).all()


def test_its_gradient_is_that_of_the_formula():
    conv = make(*CONVS[1])
    penalty = SpectralPenalty([conv], 1.0)
    for _ in range(300):
        penalty()
    penalty()[0].backward()
    direction = torch.randn_like(conv.weight)
    step = 1e-5
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(conv)
        moved.weight.data += sign * step * direction
        ends.append(by_svd(moved, 1.0))
    torch.testing.assert_close(
        (conv.weight.grad * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=0
    )


def test_of_one_singular_value_it_is_the_orthogonality_loss():
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, 1.7)
    for loss in (SpectralPenalty([conv], 1.0)(), orthogonality_losses([conv], "exact")):
        assert loss.item() == pytest.approx(0.5 * (1.7**2 - 1) ** 2)


def test_what_is_below_the_bound_is_free():
    conv = nn.Conv2d(4, 4, 3, bias=False)
    delta_init_(conv.weight)
    with torch.no_grad():
        conv.weight[2] *= 0.1
        conv.weight[3] = 0
    value = SpectralPenalty([conv], 1.0)()
    value.sum().backward()
    assert value.item() < 1e-12 and conv.weight.grad.abs().max() < 1e-5


def test_it_brings_the_largest_values_down_and_leaves_the_others():
    torch.manual_seed(0)
    conv = ScaledConv2d(8, 8, 3, bias=False, gain=3.0)
    orthogonal_init_(conv.weight, all_taps=True)
    with torch.no_grad():
        conv.weight += 0.05 * torch.randn_like(conv.weight)
    before = conv_singular_values(conv.weight, 5)
    penalty, optimizer = SpectralPenalty([conv], 1.0), torch.optim.SGD(conv.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        penalty().sum().backward()
        optimizer.step()
    after = conv_singular_values(conv.weight, 5)
    assert before[0] > 1.4 and after[0] < 1.05
    assert after[-1] > 0.9 * before[-1]


def test_layers_of_one_shape_are_worked_on_together_and_in_their_order():
    torch.manual_seed(0)
    convs = [make(*CONVS[i]) for i in (0, 1, 0, 3, 0)]
    together = SpectralPenalty(convs, 1.0)
    for _ in range(300):
        values = together()
    torch.testing.assert_close(values, torch.stack([by_svd(c, 1.0) for c in convs]), rtol=1e-6, atol=1e-9)
    assert SpectralPenalty([])().shape == (0,)


def test_a_kernel_that_grows_from_zero_is_seen():
    conv = nn.Conv2d(4, 4, 3, bias=False).double()
    nn.init.zeros_(conv.weight)
    penalty = SpectralPenalty([conv], 1.0)
    assert penalty().item() == 0
    nn.init.normal_(conv.weight, std=0.5)
    for _ in range(300):
        value = penalty()
    torch.testing.assert_close(value[0], by_svd(conv, 1.0), rtol=1e-6, atol=1e-9)


def test_it_goes_on_where_it_was():
    convs = [make(*CONVS[0]), make(*CONVS[3])]
    first = SpectralPenalty(convs, 1.0)
    first()
    second = SpectralPenalty(convs, 1.0, seed=5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(), second())


def test_half_precision_and_autocast():
    conv = nn.Conv2d(3, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        value = SpectralPenalty([conv], 0.1)()
    assert value.dtype == torch.float32
    value.sum().backward()
    assert conv.weight.grad.abs().sum() > 0
    assert SpectralPenalty([conv.bfloat16()], 1.0)().dtype == torch.float32


def test_what_is_refused():
    for bound in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="bound of singular values must be a finite number above 0"):
            SpectralPenalty([], bound)
    with pytest.raises(TypeError, match=r"takes nn\.Conv2d and nn\.ConvTranspose2d, got Linear"):
        SpectralPenalty([nn.Linear(2, 2)])
