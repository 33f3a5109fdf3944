"""The moving average of the weights: its values, who gets it, and that a training goes on with it."""

import os
import signal

import engine_toys
import kills
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, SimpleTrainer
from engine_toys import At, final, toy_config, trained
from torch import nn

from iso_d2.engine import AverageHook, Trainer
from iso_d2.engine.predictor import Predictor

EMA = "SOLVER.EMA", 0.5, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.3


@pytest.fixture(autouse=True)
def data(toy_data, usual_handlers):
    pass


class Weights(HookBase):
    """The weights after each step."""

    def __init__(self):
        self.after = []

    def after_step(self):
        self.after.append({name: value.clone() for name, value in self.trainer.model.state_dict().items()})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_average_by_hand():
    """w = 1, 2, ..., 30; d = 0, 1/10, 2/11, ... and from t = 9 on 1/2; the number of steps is copied."""

    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.register_buffer("statistics", torch.zeros(1))
            self.register_buffer("number", torch.tensor(0))

        def forward(self, _):
            with torch.no_grad():
                self.weight += 1
                self.statistics += 10
                self.number += 1
            return {"loss": 0 * self.weight.sum()}

    model, hook = Counter(), AverageHook(0.5)
    trainer = SimpleTrainer(model, [0] * 30, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([hook])
    trainer.train(0, 30)
    average = 0.0
    for step in range(30):
        d = step / (step + 9) if step < 9 else 0.5
        average = d * average + (1 - d) * (step + 1)
    assert hook.weights["weight"].tolist() == pytest.approx([average] * 2)
    assert hook.weights["statistics"].item() == pytest.approx(10 * average)
    assert hook.weights["number"].item() == 30
    assert model.weight.tolist() == [30, 30]


def test_checkpoints_hold_the_average_and_what_it_is_of(tmp_path):
    weights = Weights()
    trainer = trained(tmp_path, *EMA, hook=weights)
    wanted = {name: value.clone() for name, value in weights.after[0].items()}
    for step in (1, 2, 3):
        d = step / (step + 9)
        for name, value in weights.after[step].items():
            wanted[name] = d * wanted[name] + (1 - d) * value
    saved = final(tmp_path)
    torch.testing.assert_close(saved["model"], wanted)
    assert not same(saved["model"], weights.after[-1])
    assert same(saved["trainer"]["hooks"]["AverageHook"]["trained"], weights.after[-1])
    # plain Detectron2 reads the average, too
    model = Trainer.build_model(toy_config(tmp_path))
    DetectionCheckpointer(model).load(str(tmp_path / "model_final.pth"))
    assert same(model.state_dict(), saved["model"])
    assert same(trainer.model.state_dict(), weights.after[-1])


def test_evaluation_and_prediction_are_of_the_average(tmp_path, monkeypatch):
    seen = []

    def look(self, image):
        seen.append({name: value.clone() for name, value in self.state_dict().items()})
        return predict(self, image)

    predict = engine_toys.ToyModel.predict
    monkeypatch.setattr(engine_toys.ToyModel, "predict", look)
    cfg = toy_config(tmp_path, *EMA, "TEST.EVAL_PERIOD", 2, "TEST.BEST", ["bbox/AP", "max"])
    Trainer(cfg).train()
    assert len(seen) == 8  # 4 images after steps 1 and 3
    best, last = (torch.load(tmp_path / f"model_{name}.pth") for name in ("best", "final"))
    assert same(seen[0], best["model"]) and best["iteration"] == 1
    assert same(seen[-1], last["model"]) and not same(seen[0], seen[-1])
    seen.clear()
    cfg = toy_config(tmp_path, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    Trainer.evaluate(cfg)
    Predictor(cfg, fold=False)(str(tmp_path / "toy_test_0.png"))
    assert len(seen) == 5 and all(same(one, last["model"]) for one in seen)


def test_an_evaluation_changes_no_weight(tmp_path):
    one, two = Weights(), Weights()
    trained(tmp_path / "one", *EMA, hook=one)
    trained(tmp_path / "two", *EMA, "DATASETS.TEST", "('toy_test',)", "TEST.EVAL_PERIOD", 1, hook=two)
    assert all(same(a, b) for a, b in zip(one.after, two.after, strict=True))


def test_an_interrupted_training_goes_on_exactly(tmp_path):
    trained(tmp_path / "whole", *EMA)
    with pytest.raises(SystemExit):
        trained(tmp_path / "parts", *EMA, hook=At(1, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    trainer = trained(tmp_path / "parts", *EMA)
    assert trainer.start_iter == 3
    assert kills.digest(tmp_path / "parts") == kills.digest(tmp_path / "whole")
    trained_weights = [
        final(tmp_path / name)["trainer"]["hooks"]["AverageHook"]["trained"] for name in ("parts", "whole")
    ]
    assert same(*trained_weights)


def test_the_average_may_be_turned_on_and_off_between_runs(tmp_path):
    trained(tmp_path, "SOLVER.MAX_ITER", 2)
    assert "AverageHook" not in final(tmp_path)["trainer"]["hooks"]
    trained(tmp_path, *EMA)
    state = final(tmp_path)["trainer"]["hooks"]["AverageHook"]
    assert state["steps"] == 2
    average = final(tmp_path)["model"]
    trainer = Trainer(toy_config(tmp_path, "SEED", 1, "DATASETS.TEST", (), "SOLVER.MAX_ITER", 4))
    trainer.resume_or_load(resume=True)
    assert same(trainer.model.state_dict(), average)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_senseless_decays(tmp_path, decay):
    with pytest.raises(ValueError, match=r"SOLVER\.EMA must be at least 0 \(off\) and below 1"):
        Trainer(toy_config(tmp_path, "SOLVER.EMA", decay))
