import pytest
import torch
from detectron2.engine import HookBase
from engine_toys import toy_config
from torch import nn

from iso_d2.engine import Trainer
from iso_d2.engine.divergence import diagnosis


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)

    def forward(self, x):
        return {"loss_a": self.second(self.first(x)).log().sum(), "loss_b": self.first(x).square().sum()}


def net(first=1.0, second=1.0):
    made = Net()
    for layer, value in ((made.first, first), (made.second, second)):
        nn.init.constant_(layer.weight, value)
        nn.init.zeros_(layer.bias)
    return made


def test_weights_come_first():
    assert diagnosis(net(second=float("nan")), torch.ones(1, 2)) == (
        "1 weights are not finite, the first is second.weight"
    )


def test_the_first_layer_whose_output_is_not_finite():
    found = diagnosis(net(first=3e38), torch.ones(1, 2))
    assert "loss_b = inf" in found
    assert found.endswith("the first output that is not finite is that of first")


def test_a_loss_alone():
    found = diagnosis(net(first=-1.0), torch.ones(1, 2))  # the logarithm of a negative number
    assert found.startswith("loss_a = nan; the first output that is not finite is that of Net")


def test_a_gradient_alone():
    class Root(Net):
        def forward(self, x):
            # 0 with a slope of infinity
            return {"loss": self.second(self.first(x)).sum().sqrt()}

    model = Root()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(model.first.weight)
    found = diagnosis(model, torch.ones(1, 2))
    assert found.startswith("the first gradient that is not finite is that of second")


def test_nothing():
    assert diagnosis(net(), torch.ones(1, 2)) == "computed once more, everything is finite"


def test_a_diverged_training_says_where_and_what_to_do(tmp_path, toy_data):
    cfg = toy_config(tmp_path, "SEED", 1, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2)
    trainer = Trainer(cfg)

    class Ruin(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                nn.init.constant_(self.trainer.model.backbone.res3[0].conv1.weight, float("nan"))

    trainer.register_hooks([Ruin()])
    trainer.resume_or_load(resume=False)
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    message = str(raised.value)
    assert (
        "diverged at iteration 3: 1 weights are not finite, the first is backbone.res3.0.conv1.weight"
        in message
    )
    assert "Lower SOLVER.BASE_LR (it is 0.01)" in message
    assert "with --resume from" in message
    assert "model_0000001.pth, the last good checkpoint" in message
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_loss_above_the_bound_stops(tmp_path, toy_data):
    trainer = Trainer(toy_config(tmp_path, "SOLVER.MAX_LOSS", 1e-9))
    trainer.resume_or_load(resume=False)
    with pytest.raises(FloatingPointError, match=r"total_loss is .*, above SOLVER.MAX_LOSS 1e-09"):
        trainer.train()
    assert not list(tmp_path.glob("model_*"))


def test_an_error_of_the_models_own():
    class Strict(Net):
        def forward(self, x):
            super().forward(x)
            raise FloatingPointError("Predicted boxes contain Inf/NaN")

    model = Strict()
    model.load_state_dict(net(first=3e38).state_dict())
    assert diagnosis(model, torch.ones(1, 2)) == (
        "Predicted boxes contain Inf/NaN; the first output that is not finite is that of first"
    )
