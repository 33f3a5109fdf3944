import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "engine"))
import engine_toys  # noqa: E402


@pytest.fixture
def train_net():
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "tools" / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config_file(tmp_path):
    for name in ("toy_train", "toy_test"):
        engine_toys.register_toy_data(tmp_path, name)
    path = tmp_path / "toy.yaml"
    path.write_text(engine_toys.toy_config(tmp_path / "output").dump())
    yield path
    for name in ("toy_train", "toy_test"):
        engine_toys.unregister(name)


def parse(config_file, *arguments):
    return default_argument_parser().parse_args(["--config-file", str(config_file), *arguments])


def test_train_resume_and_evaluate(train_net, config_file, tmp_path):
    train_net.main(parse(config_file))
    state = torch.load(tmp_path / "output" / "model_final.pth")
    assert state["iteration"] == 2

    train_net.main(parse(config_file, "--resume", "SOLVER.MAX_ITER", "5"))
    resumed = torch.load(tmp_path / "output" / "model_final.pth")
    assert resumed["iteration"] == 4
    assert resumed["trainer"]["_trainer"]["iteration"] == 4

    for arguments in (
        ["--eval-only", "--resume"],
        ["--eval-only", "MODEL.WEIGHTS", "output/model_final.pth"],
    ):
        arguments[-1] = arguments[-1].replace("output", str(tmp_path / "output"))
        results = train_net.main(parse(config_file, *arguments))
        assert results["bbox"]["AP"] == pytest.approx(100)  # the toy always finds the box


def test_evaluating_an_absent_checkpoint(train_net, config_file):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth' does not exist"):
        train_net.main(parse(config_file, "--eval-only", "MODEL.WEIGHTS", "absent.pth"))


def test_nan_stops_the_training(train_net, config_file):
    with pytest.raises(FloatingPointError, match="Loss became infinite or NaN at iteration=1"):
        train_net.main(parse(config_file, "SOLVER.BASE_LR", "1e30"))


@pytest.mark.parametrize("cuda, said", [(False, True), (True, False)])
def test_processes_on_the_cpu_are_announced(train_net, cuda, said, monkeypatch, capsys):
    launched = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(train_net, "launch", lambda main, *rest, args: launched.append((main, *rest)))
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--num-gpus", "2", "--dist-url", "auto"])
    train_net.run()
    assert launched == [(train_net.main, 2, 1, 0, "auto")]
    assert ("running 2 processes on the CPU" in capsys.readouterr().out) == said
