import pytest
import torch
from torch import nn

from benchmarks.options import Options
from benchmarks.penalty import (
    largest_difference,
    measure_penalty,
    paper_loss,
    paper_losses,
    values_and_gradients,
)
from iso_d2.isometry import orthogonality_loss, orthogonality_losses

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


def test_both_forms_give_the_values_and_then_the_gradients_of_all_layers():
    convs = [nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 3, 1, bias=False)]
    paper = values_and_gradients(convs, paper_losses)
    assert [value.item() for value in paper[:2]] == [paper_loss(conv.weight).item() for conv in convs]
    assert [tuple(gradient.shape) for gradient in paper[2:]] == [(3, 2, 3, 3), (3, 3, 1, 1)]
    for a, b in zip(paper, values_and_gradients(convs, orthogonality_losses), strict=True):
        torch.testing.assert_close(a, b)


def test_forms_that_differ_are_an_error(monkeypatch):
    convs = [nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 8, 3, stride=2, bias=False)]
    assert largest_difference(convs) < 1e-5
    monkeypatch.setattr(
        "benchmarks.penalty.orthogonality_losses",
        lambda convs, mode: torch.stack([1.001 * paper_loss(c.weight, c.stride[0]) for c in convs]),
    )
    with pytest.raises(RuntimeError, match=r"differ by 1\.0e-03"):
        largest_difference(convs)


def test_penalty_part_has_forms_options_and_shapes():
    whole, shapes = measure_penalty(Options(depth=8, batch=2, size=(16, 16), repeats=1), 0)
    by_name = {row["penalty"]: row for row in whole.rows}
    names = list(by_name)
    assert names[0].startswith("paper's form")
    assert [any(word in name for name in names) for word in ("exact", "fraction 0.25", "every 5 steps")] == [
        True
    ] * 3
    assert all(row["n"] == 1 and row["share of the step"] > 0 for row in whole.rows)
    # every 5 steps costs a fifth of the mode that it is computed from
    ours, fifth = (
        by_name[f"iso_d2, mode paper{suffix}"]["ms"]["median"]
        for suffix in ("", ", every 5 steps (computed)")
    )
    assert fifth == pytest.approx(ours / 5)
    assert {row["precision"] for row in [*whole.rows, *shapes.rows]} == {"float32"}
    assert sum(row["layers"] for row in shapes.rows) == 8  # R-ISONet-8: 6 in blocks, 2 projections
    assert not any("target" in row for row in whole.rows)  # targets are for depth 50
