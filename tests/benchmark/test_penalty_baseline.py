import pytest
import torch
from torch import nn

from iso_d2.benchmark import Options, paper_loss
from iso_d2.benchmark.networks import add_penalty, isonet, penalised_convs
from iso_d2.benchmark.penalty import by_iso_d2, by_paper, largest_difference, width_convs
from iso_d2.benchmark.scaling import PenaltyAlone
from iso_d2.engine.setup import load_config
from iso_d2.isometry import orthogonality_loss

SHAPES = [
    ((3, 5, 3, 3), 1),
    ((5, 3, 3, 3), 1),
    ((3, 5, 3, 3), 2),
    ((5, 3, 3, 3), 2),
    ((4, 6, 1, 1), 1),
    ((6, 4, 1, 1), 2),
    ((2, 3, 5, 5), 2),
]


@pytest.mark.parametrize(("shape", "stride"), SHAPES)
def test_paper_form_is_the_penalty_of_mode_paper(shape, stride):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = orthogonality_loss(weight, stride, mode="paper")
    (wanted,) = torch.autograd.grad(ours, [weight])
    loss = paper_loss(weight, stride)
    (gradient,) = torch.autograd.grad(loss, [weight])
    assert loss.item() == pytest.approx(ours.item(), rel=1e-12)
    torch.testing.assert_close(gradient, wanted)


def test_paper_form_of_a_case_worked_by_hand():
    # one channel, taps 1 and 2 of a row: Gram 2, 5, 2 at shifts -1, 0, 1; 1/2 (4 + 16 + 4)
    weight = torch.tensor([[[[0.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]]])
    assert paper_loss(weight).item() == 12
    # two outputs of one input, 3 and 4: the smaller Gram is 25; 1/2 24^2
    assert paper_loss(torch.tensor([3.0, 4.0]).view(2, 1, 1, 1)).item() == 288


def test_both_functions_give_sums_and_gradients_of_all_layers():
    convs = [nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 3, 1, bias=False)]
    total, gradients = by_paper(convs)()
    assert total.item() == pytest.approx(sum(paper_loss(c.weight).item() for c in convs), rel=1e-5)
    others = by_iso_d2(convs)()
    assert others[0].item() == pytest.approx(total.item(), rel=1e-5)
    for a, b in zip(gradients, others[1], strict=True):
        torch.testing.assert_close(a, b)


def test_forms_that_differ_are_an_error(monkeypatch):
    convs = [nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 8, 3, stride=2, bias=False)]
    assert largest_difference(convs) < 1e-5
    monkeypatch.setattr(
        "iso_d2.benchmark.penalty.orthogonality_losses",
        lambda convs, mode: torch.stack([1.001 * paper_loss(c.weight, c.stride[0]) for c in convs]),
    )
    with pytest.raises(RuntimeError, match=r"differ by 1\.0e-03"):
        largest_difference(convs)


def test_layers_are_those_that_the_hook_of_the_trainer_takes():
    options = Options(depth=8)
    net = isonet(options)
    model, cfg = PenaltyAlone(net), load_config()
    handle = add_penalty(model, cfg)
    loss = model()["loss_ortho"].item()
    expected = sum(paper_loss(c.weight, c.stride[0]).item() for c in penalised_convs(net))
    assert loss == pytest.approx(1e-4 * expected, rel=1e-4)
    assert loss > 1e-6  # kernels are no deltas any more
    handle.remove()
    assert model() == {}


def test_seven_by_seven_kernels_and_images_are_left_out():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 7), nn.Conv2d(8, 4, 3), nn.Linear(4, 4))
    assert penalised_convs(net) == [net[2]]


def test_convolutions_of_the_width_sweep():
    convs = width_convs(Options(), (2, 4))
    assert {width: tuple(conv.weight.shape) for width, (conv,) in convs.items()} == {
        2: (2, 2, 3, 3),
        4: (4, 4, 3, 3),
    }
