import json

import pytest
import torch
import torch.nn.functional as F
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.engine.hooks import PeriodicWriter
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.utils.events import JSONWriter
from engine_toys import ToyModel, tiny_resnet, toy_batches
from torch import nn

from iso_d2.engine import OrthogonalityLossHook
from iso_d2.modeling import ISONet


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


RESNET_LAYERS = [
    "backbone.res2.0.conv1",
    "backbone.res2.0.conv2",
    "backbone.res2.1.conv1",
    "backbone.res2.1.conv2",
    "backbone.res3.0.shortcut",
    "backbone.res3.0.conv1",
    "backbone.res3.0.conv2",
]


def penalised(model, **kwargs):
    """Names of the layers that the hook writes."""
    (losses,) = train(model, OrthogonalityLossHook(1e-4, **kwargs), steps=1)
    return [name[len("ortho/") :] for name in losses if name.startswith("ortho/") and name != "ortho/total"]


def test_stock_trainer_and_model_with_one_hook(tmp_path):
    model = ToyModel(tiny_resnet())
    expected = {name: paper_penalty(model.get_submodule(name)) for name in RESNET_LAYERS}
    writer = PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=1)
    train(model, OrthogonalityLossHook(0.1), steps=2, more_hooks=[writer])
    first, second = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())

    assert {name: first[f"ortho/{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert first["ortho/total"] == pytest.approx(sum(expected.values()), rel=1e-5)
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
    expected = 0.1 * sum(paper_penalty(model.get_submodule(name)) for name in RESNET_LAYERS)
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


def test_wrapped_model():
    model = nn.DataParallel(ToyModel(tiny_resnet()))
    assert penalised(model) == RESNET_LAYERS


def test_float32_under_autocast():
    model = ToyModel(tiny_resnet())
    expected = 0.1 * sum(paper_penalty(model.get_submodule(name)) for name in RESNET_LAYERS)
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


def test_default_leaves_out_the_layers_of_an_fpn():
    model = ToyModel(None)
    model.backbone = FPN(tiny_resnet(), ["res3"], 8, top_block=LastLevelP6P7(8, 8, "res3"))
    model.head = nn.Conv2d(8, 8, 3)
    expected = [name.replace("backbone.", "backbone.bottom_up.") for name in RESNET_LAYERS]
    assert penalised(model) == expected


def test_default_leaves_out_7x7_kernels_and_3_channel_inputs():
    model = ToyModel(tiny_resnet())
    model.backbone.wide = nn.Conv2d(4, 4, 7)
    model.backbone.first = nn.Conv2d(3, 4, 3)
    model.backbone.other = nn.Conv2d(4, 4, 5)
    assert penalised(model) == [*RESNET_LAYERS, "backbone.other"]


class TwoParts(ToyModel):
    """An ISONet as backbone, blocks of another one in the head, and layers that are neither."""

    def __init__(self):
        super().__init__(ISONet(8, residual=True, stem="cifar", out_features=["res4"]))
        self.rpn_head = nn.Conv2d(64, 8, 3)
        self.roi_heads = nn.Module()
        self.roi_heads.res5 = ISONet(8, residual=True, stem="cifar").res3


def test_default_takes_isonet_blocks_wherever_they_are():
    names = penalised(TwoParts())
    parts = {name.split(".")[0] for name in names}
    assert parts == {"backbone", "roi_heads"}
    # 6n + 2 with n = 1: 3 blocks of 2 convolutions and 2 projections; the stem sees 3 channels.
    assert len(names) == (3 * 2 + 2) + (2 + 1)


def test_include_and_exclude():
    model = ToyModel(tiny_resnet())
    assert penalised(model, include=["backbone.stem", "*.shortcut"]) == [
        "backbone.stem.conv1",
        "backbone.res3.0.shortcut",
    ]
    assert penalised(model, include=["backbone.res2"]) == RESNET_LAYERS[:4]
    assert penalised(model, exclude=["backbone.res[23].*.conv1", "backbone.res3"]) == [
        "backbone.res2.0.conv2",
        "backbone.res2.1.conv2",
    ]


def test_frozen_layers_are_left_out(log):
    model = ToyModel(tiny_resnet())
    model.backbone.freeze(2)  # stem and res2
    assert penalised(model) == RESNET_LAYERS[4:]
    assert "on 3 convolutions: backbone.res3 (3)" in log.text
    model.backbone.requires_grad_(False)
    model.free = nn.Parameter(torch.zeros(()))
    hook = OrthogonalityLossHook(0.1)
    trainer = SimpleTrainer(model, toy_batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([hook])
    trainer.train(0, 0)
    assert "no layer to act on" in log.text


def test_pattern_that_matches_nothing():
    model = ToyModel(tiny_resnet())
    with pytest.raises(
        ValueError, match=r"'backbone\.res4' matches no convolution.*backbone\.res2, backbone\.res3"
    ):
        penalised(model, include=["backbone.res2", "backbone.res4"])
    with pytest.raises(ValueError, match=r"'\*\.bottom_up' matches no convolution"):
        penalised(model, exclude=["*.bottom_up"])


class NoBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 3, 1)

    def forward(self, batch):
        return {"loss": self.net(batch[0]["image"].float()).sum()}


def test_model_without_backbone_needs_include():
    with pytest.raises(
        ValueError, match=r"NoBackbone has neither an ISONet, a UNet nor a module `backbone`.*include.*net"
    ):
        penalised(NoBackbone())
    assert penalised(NoBackbone(), include=["net"]) == ["net"]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"coeff": -1e-4}, "coeff must be a finite number >= 0, got -0.0001"),
        ({"coeff": float("nan")}, "got nan"),
        ({"coeff": 1.0, "period": 0}, "period must be at least 1 .* got 0"),
        ({"coeff": 1.0, "log_period": -1}, "log_period must be >= 0 .* got -1"),
        ({"coeff": 1.0, "mode": "papers"}, "'papers'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OrthogonalityLossHook(**kwargs)
