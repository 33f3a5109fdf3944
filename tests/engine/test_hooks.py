import json

import engine_toys
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import JSONWriter
from engine_toys import ToyModel, tiny_resnet, toy_batches
from torch import nn

from iso_d2.engine import DeltaInitHook, IsometryHook, SignalHook, Trainer
from iso_d2.isometry import conv_singular_values
from iso_d2.modeling import ISONet


def delta_init(model, start=0, **kwargs):
    trainer = SimpleTrainer(model, toy_batches(), torch.optim.SGD(model.parameters(), lr=0.0))
    trainer.register_hooks([DeltaInitHook(["backbone"], **kwargs)])
    trainer.train(start, start)


def test_delta_initialisation_before_the_first_step(log):
    model = ToyModel(tiny_resnet())
    delta_init(nn.DataParallel(model))
    block = model.backbone.res3[0]
    assert torch.equal(block.conv1.weight[:8, :, 1, 1], torch.eye(8)) and not block.conv2.weight.any()
    assert "Delta initialisation of 7 convolutions: backbone.stem (1), backbone.res2 (4)" in log.text
    assert "3 at the end of a residual branch are 0" in log.text
    assert "7x7 kernels left as they are: backbone.stem.conv1" in log.text


@pytest.mark.parametrize(
    "kwargs, why",
    [({"weights_loaded": True}, "weights were loaded"), ({"start": 5}, "the training was resumed")],
)
def test_loaded_weights_stay(kwargs, why, log):
    model = ToyModel(tiny_resnet())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    delta_init(model, **kwargs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert f"No delta initialisation: {why}" in log.text


def train(model, period, steps, folder, lr=0.0):
    """What is in metrics.json at each step."""
    trainer = SimpleTrainer(model, toy_batches(), torch.optim.SGD(model.parameters(), lr=lr))
    writer = PeriodicWriter([JSONWriter(str(folder / "metrics.json"))], period=1)
    trainer.register_hooks([IsometryHook(period), writer])
    trainer.train(0, steps)
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [
        {name.removeprefix("isometry/"): value for name, value in line.items() if "isometry" in name}
        for line in lines
    ]


def test_it_writes_at_the_period_only(tmp_path):
    steps = train(ToyModel(tiny_resnet()), 2, 5, tmp_path)
    assert [bool(step) for step in steps] == [True, False, True, False, True]
    assert steps[0] == steps[2]


def test_singular_values_are_those_of_the_layers(tmp_path):
    model = ToyModel(tiny_resnet())
    (step,) = train(model, 1, 1, tmp_path)
    values = conv_singular_values(model.backbone.res2[0].conv1.weight, 5)
    name = "backbone.res2.0.conv1"
    assert (step[f"{name}_max"], step[f"{name}_min"]) == pytest.approx((values[0].item(), values[-1].item()))
    assert step[f"{name}_error"] == pytest.approx((values - 1).abs().max().item())
    assert step[f"{name}_near"] == pytest.approx(sum(0.5 <= value <= 1.5 for value in values) / len(values))


def test_singular_values_follow_the_training(tmp_path):
    first, second = train(ToyModel(tiny_resnet()), 1, 2, tmp_path, lr=0.1)
    assert first["backbone.res2.0.conv1_max"] != second["backbone.res2.0.conv1_max"]


def test_thresholds_scales_signal_and_gradient_of_an_isonet(tmp_path):
    # from the stem on the identity, for inputs above the thresholds
    net = ISONet(8, True, stem="cifar", srelu_init=-100.0, out_features=["res3"])
    (step,) = train(ToyModel(net), 1, 1, tmp_path)
    assert [step[f"backbone.res2.0.srelu_{which}"] for which in ("min", "mean", "max")] == [-100] * 3
    assert step["backbone.res3.0.scale"] == 0
    signals = [step[f"backbone.{name}_signal"] for name in ("stem", "res2.0", "res3.0")]
    # constant images; half of the channels of res3 are new and 0
    assert signals == pytest.approx([1, 1, 0.5**0.5])
    gradients = [step[f"backbone.{name}_gradient"] for name in ("stem", "res2.0", "res3.0")]
    # of the squares' mean, only the three channels of the image have one, which pass as they are
    assert gradients == pytest.approx([1, 1, 1])


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, batch):
        self.conv(batch[0]["image"][None].float())
        raise RuntimeError("killed")


def test_hooks_are_gone_after_a_failed_step(tmp_path):
    model = Failing()
    with pytest.raises(RuntimeError, match="killed"):
        train(model, 1, 1, tmp_path)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="period must be at least 1"):
        IsometryHook(0)
    with pytest.raises(ValueError, match=r"Linear has no nn\.Conv2d"):
        train(nn.Linear(1, 1), 1, 1, tmp_path)


@pytest.mark.parametrize("period", [0, 2])
def test_trainer_takes_it_from_the_config(toy_data, tmp_path, period):
    cfg = engine_toys.toy_config(tmp_path, "ISO.ANALYSIS.PERIOD", period, "ISO.ORTHO.COEFF", 0.0)
    trainer = Trainer(cfg)
    assert [h.period for h in trainer._hooks if isinstance(h, IsometryHook)] == ([2] if period else [])
    trainer.train()
    written = "isometry/backbone.res3.0.conv1_max" in (tmp_path / "metrics.json").read_text()
    assert written == bool(period)


def first_step(net, log):
    trainer = SimpleTrainer(ToyModel(net), toy_batches(), torch.optim.SGD(net.parameters(), lr=0.0))
    trainer.register_hooks([SignalHook()])
    trainer.train(0, 2)
    assert not any(m._forward_hooks for m in net.modules())
    return [record for record in log.records if record.name == "iso_d2.engine.hooks"]


def test_the_first_step_s_signal_is_logged_once(log):
    table, fault = first_step(ISONet(8, True, stem="cifar", srelu_init=-100.0, out_features=["res2"]), log)
    assert "backbone.res2.0.srelu" in table.getMessage() and "mean square" in table.getMessage()
    assert fault.levelname == "WARNING"
    assert (
        "linear (below 0.1% of the values clipped) at 3 of 3 SReLUs: backbone.stem.srelu"
        in fault.getMessage()
    )


def test_a_dead_network_is_named(log):
    _, fault = first_step(ISONet(8, False, stem="cifar", srelu_init=100.0, out_features=["res2"]), log)
    assert "dead (above 99% clipped) at 3 of 3" in fault.getMessage()


def test_a_network_without_srelu_has_no_such_signal(log):
    assert first_step(tiny_resnet(), log) == []


def test_shares_of_clipped_values_and_mean_squares_are_written(tmp_path):
    net = ISONet(8, True, stem="cifar", srelu_init=0.2, out_features=["res2"])
    (step,) = train(ToyModel(net), 1, 1, tmp_path)
    # three channels of a constant image at 100 / 255, 13 of zeros, which are clipped
    assert step["backbone.stem.srelu_held"] == pytest.approx(13 / 16)
    assert step["backbone.stem.conv_mean_square"] == pytest.approx(3 / 16 * (100 / 255) ** 2)
    square = 3 / 16 * (100 / 255) ** 2 + 13 / 16 * 0.2**2
    assert step["backbone.stem.srelu_mean_square"] == pytest.approx(square)
