import json

import pytest
import torch
import torch.nn.functional as F
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import JSONWriter
from engine_toys import ToyModel, penalised_training, tiny_resnet, toy_batches, toy_with_random_weights
from torch import nn

from iso_d2.engine import OrthogonalityLossHook
from iso_d2.isometry import SpectralPenalty


class EachStep(HookBase):
    """Keeps the losses of every step."""

    def __init__(self):
        self.losses = []

    def after_step(self):
        self.losses.append(
            {name: v for name, (v, i) in self.trainer.storage.latest().items() if i == self.trainer.iter}
        )


def train(model, hook, steps, lr=0.0, more_hooks=()):
    trainer = SimpleTrainer(model, toy_batches(), torch.optim.SGD(model.parameters(), lr=lr))
    seen = EachStep()
    trainer.register_hooks([hook, *more_hooks, seen])
    trainer.train(0, steps)
    return seen.losses


def paper_penalty(conv):
    """The formula of the paper's code, with the smaller Gram."""
    weight = conv.weight.detach().double()
    if weight.shape[0] > weight.shape[1]:
        weight = weight.transpose(0, 1)
    k = weight.shape[-1]
    gram = F.conv2d(weight, weight, padding=k - 1, stride=conv.stride)
    centre = gram.shape[-1] // 2
    gram[:, :, centre, centre] -= torch.eye(len(weight), dtype=torch.float64)
    return 0.5 * gram.square().sum().item()


def paper_penalties(model):
    """Of the toy model's convolutions but its 7x7 stem."""
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    return {name: paper_penalty(conv) for name, conv in convs.items() if "stem" not in name}


def test_stock_trainer_and_model_with_one_hook(tmp_path):
    model = ToyModel(tiny_resnet())
    expected = paper_penalties(model)
    writer = PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=1)
    train(model, OrthogonalityLossHook(0.1), steps=2, more_hooks=[writer])
    first, second = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())

    by_layer = {name[len("ortho/") :]: value for name, value in first.items() if name.startswith("ortho/")}
    assert by_layer.pop("total") == pytest.approx(sum(expected.values()), rel=1e-5)
    assert by_layer == pytest.approx(expected, rel=1e-5)
    assert first["loss_ortho"] == pytest.approx(0.1 * sum(expected.values()), rel=1e-5)
    assert first["total_loss"] == pytest.approx(first["loss_toy"] + first["loss_ortho"], rel=1e-5)
    assert second["loss_ortho"] > 0
    assert "ortho/total" not in second  # log_period


def test_penalty_alone_makes_layers_more_orthogonal():
    model = ToyModel(tiny_resnet(), task_loss=False)
    losses = train(model, OrthogonalityLossHook(1.0), steps=8, lr=0.02)
    assert losses[-1]["loss_ortho"] < 0.8 * losses[0]["loss_ortho"]


class TensorModel(ToyModel):
    def forward(self, batch):
        return super().forward(batch)["loss_toy"]


def test_model_that_returns_a_tensor():
    model = TensorModel(tiny_resnet(), task_loss=False)
    expected = 0.1 * sum(paper_penalties(model).values())
    (losses,) = train(model, OrthogonalityLossHook(0.1), steps=1)
    assert losses["loss_ortho"] == pytest.approx(expected, rel=1e-5)
    assert losses["total_loss"] == pytest.approx(1.0 + expected, rel=1e-5)


class ListModel(ToyModel):
    def forward(self, batch):
        return [super().forward(batch)]


def test_model_that_returns_something_else():
    with pytest.raises(TypeError, match="ListModel returned list"):
        train(ListModel(tiny_resnet()), OrthogonalityLossHook(0.1), steps=1)


class Spy(HookBase):
    """Runs the model in the ways that are no training step."""

    def after_step(self):
        model, batch = self.trainer.model, next(toy_batches())
        with torch.no_grad():
            self.without_gradient = model(batch)
        model.eval()
        self.inference = model([{"height": 8, "width": 8}])
        model.train()


def test_only_training_steps_have_it_and_it_is_gone_afterwards():
    model, spy = ToyModel(tiny_resnet()), Spy()
    (losses,) = train(model, OrthogonalityLossHook(0.1), steps=1, more_hooks=[spy])
    assert "loss_ortho" in losses
    assert list(spy.without_gradient) == ["loss_toy"]
    assert "instances" in spy.inference[0]
    assert list(model(next(toy_batches()))) == ["loss_toy"]


class Failing(HookBase):
    def after_step(self):
        raise RuntimeError("killed")


def test_it_is_gone_after_a_failed_training():
    model = ToyModel(tiny_resnet())
    with pytest.raises(RuntimeError, match="killed"):
        train(model, OrthogonalityLossHook(0.1), steps=1, more_hooks=[Failing()])
    assert list(model(next(toy_batches()))) == ["loss_toy"]


def test_float32_under_autocast():
    model = ToyModel(tiny_resnet())
    expected = 0.1 * sum(paper_penalties(model).values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (losses,) = train(model, OrthogonalityLossHook(0.1), steps=1)
    assert losses["loss_ortho"] == pytest.approx(expected, rel=1e-6)


def test_period_keeps_the_mean():
    model = ToyModel(tiny_resnet(), task_loss=False)
    every = train(model, OrthogonalityLossHook(0.1), steps=6)
    third = train(model, OrthogonalityLossHook(0.1, period=3), steps=6)
    assert [("loss_ortho" in losses) for losses in third] == [True, False, False] * 2
    assert third[1]["total_loss"] == 1.0
    mean = sum(losses["total_loss"] for losses in third) / 6
    assert mean == pytest.approx(sum(losses["total_loss"] for losses in every) / 6, rel=1e-6)


def test_a_fraction_of_the_frequencies_varies_around_the_exact_loss():
    torch.manual_seed(0)
    model = ToyModel(tiny_resnet())
    (exact,) = train(model, OrthogonalityLossHook(0.1), steps=1)
    losses = [x["loss_ortho"] for x in train(model, OrthogonalityLossHook(0.1, fraction=0.5), steps=60)]
    assert len(set(losses)) > 10
    spread = torch.tensor(losses).std().item()
    assert sum(losses) / 60 == pytest.approx(exact["loss_ortho"], abs=4 * spread / 60**0.5)


def test_layers_are_written_at_the_first_penalised_step_of_each_log_period():
    hook = OrthogonalityLossHook(0.1, period=3, log_period=5)
    written = ["ortho/total" in losses for losses in train(ToyModel(tiny_resnet()), hook, steps=12)]
    # Penalised: 0, 3, 6, 9. Log periods begin at 0, 5, 10.
    assert [i for i, w in enumerate(written) if w] == [0, 6]
    never = train(ToyModel(tiny_resnet()), OrthogonalityLossHook(0.1, log_period=0), steps=1)
    assert not any(name.startswith("ortho/") for losses in never for name in losses)


def test_the_spectral_penalty_enters_the_losses_and_goes_on():
    model = toy_with_random_weights()
    hook = OrthogonalityLossHook(0.1, mode="spectral", bound=0.5, log_period=1)
    result = penalised_training(model, hook)
    fresh = toy_with_random_weights()
    convs = [fresh.get_submodule(name) for name in result["layers"]]
    assert result["written"]["loss_ortho"] == pytest.approx(0.1 * SpectralPenalty(convs, 0.5)().sum().item())
    state = hook.state_dict()
    shapes = {tuple(conv.weight.shape) + conv.stride for conv in convs}
    assert [vectors.shape[1] for vectors in state["processes"][0]["vectors"]] == [2] * len(shapes)
    again = OrthogonalityLossHook(0.1, mode="spectral", bound=0.5)
    again.load_state_dict(state)
    assert again.state_dict() == {"processes": state["processes"]}  # saved before the training goes on
    train(model, again, steps=0)
    assert torch.equal(again.penalty()[1], hook.penalty()[1])
    assert OrthogonalityLossHook(0.1).state_dict() == {"processes": []}


def test_a_model_whose_layers_are_all_frozen(log):
    model = ToyModel(tiny_resnet())
    model.backbone.requires_grad_(False)
    model.free = nn.Parameter(torch.zeros(()))
    train(model, OrthogonalityLossHook(0.1), steps=0)
    assert "no layer to act on" in log.text


def test_it_logs_what_it_takes_and_what_it_leaves(log):
    model = ToyModel(tiny_resnet())
    train(model, OrthogonalityLossHook(0.1, exclude=["backbone.res2"]), steps=0)
    assert (
        "on 3 convolutions: backbone.res3 (3); left out 5: backbone.stem (1), backbone.res2 (4)" in log.text
    )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"coeff": -1e-4}, "coeff must be a finite number >= 0, got -0.0001"),
        ({"coeff": float("nan")}, "got nan"),
        ({"coeff": 1.0, "mode": "spectral", "fraction": 0.5}, r"no fraction of frequencies, got 0\.5"),
        ({"coeff": 1.0, "mode": "spectral", "bound": 0}, "bound of singular values"),
        ({"coeff": 1.0, "period": 0}, "period must be at least 1 .* got 0"),
        ({"coeff": 1.0, "log_period": -1}, "log_period must be >= 0 .* got -1"),
        ({"coeff": 1.0, "mode": "papers"}, "'papers'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OrthogonalityLossHook(**kwargs)
