import sys

import engine_toys
import pytest
import torch
from detectron2.engine import default_argument_parser
from torch.multiprocessing import ProcessExitedException


@pytest.fixture
def train_net(load_tool):
    return load_tool("train_net")


@pytest.fixture
def config_file(toy_data, tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(engine_toys.toy_config(tmp_path / "output").dump())
    return path


def parse(config_file, *arguments):
    return default_argument_parser().parse_args(["--config-file", str(config_file), *arguments])


def test_train_resume_and_evaluate(train_net, config_file, tmp_path):
    train_net.train(parse(config_file))
    state = torch.load(tmp_path / "output" / "model_final.pth")
    assert state["iteration"] == 2

    train_net.train(parse(config_file, "--resume", "SOLVER.MAX_ITER", "5"))
    resumed = torch.load(tmp_path / "output" / "model_final.pth")
    assert resumed["iteration"] == 4
    assert resumed["trainer"]["_trainer"]["iteration"] == 4

    for arguments in (
        ["--eval-only", "--resume"],
        ["--eval-only", "MODEL.WEIGHTS", "output/model_final.pth"],
    ):
        arguments[-1] = arguments[-1].replace("output", str(tmp_path / "output"))
        results = train_net.train(parse(config_file, *arguments))
        assert results["bbox"]["AP"] == pytest.approx(100)  # the toy always finds the box


def test_evaluating_an_absent_checkpoint(train_net, config_file):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth' does not exist"):
        train_net.train(parse(config_file, "--eval-only", "MODEL.WEIGHTS", "absent.pth"))


def test_evaluating_nothing(train_net, config_file):
    with pytest.raises(ValueError, match=r"Nothing to evaluate: MODEL\.WEIGHTS is empty\. Name"):
        train_net.train(parse(config_file, "--eval-only"))
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty and .*output holds no checkpoint"):
        train_net.train(parse(config_file, "--eval-only", "--resume"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["SOLVER.BASE_RL", "0.1"], r"error: Non-existent key: SOLVER\.BASE_RL\. .*: SOLVER\.BASE_LR,"),
        (["SOLVER.BASE_LR", "fast"], r"error: Type mismatch .*SOLVER\.BASE_LR"),
        (["SOLVER.BASE_LR"], "error: Override list has odd length"),
        (["MODEL.DEVICE", "gpu"], "error: MODEL.DEVICE must be cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_a_wrong_setting_needs_no_traceback(train_net, config_file, arguments, message):
    with pytest.raises(SystemExit, match=message):
        train_net.train(parse(config_file, *arguments))


def test_nan_stops_the_training(train_net, config_file):
    with pytest.raises(FloatingPointError, match="diverged at iteration 1"):
        train_net.train(parse(config_file, "SOLVER.BASE_LR", "1e30"))


@pytest.mark.parametrize("cuda, said", [(False, True), (True, False)])
def test_processes_on_the_cpu_are_announced(train_net, cuda, said, monkeypatch, capsys):
    launched = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(train_net, "launch", lambda function, *rest, args: launched.append((function, *rest)))
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--num-gpus", "2", "--dist-url", "auto"])
    train_net.main()
    assert launched == [(train_net.train, 2, 1, 0, "auto")]
    assert ("running 2 processes on the CPU" in capsys.readouterr().out) == said


@pytest.mark.parametrize("signal_name, ends", [(None, SystemExit), ("SIGKILL", ProcessExitedException)])
def test_a_process_that_has_said_why_it_ends_needs_no_traceback(train_net, signal_name, ends, monkeypatch):
    def launch(*_, **__):
        raise ProcessExitedException("process 1 ...", 1, 4711, exit_code=3, signal_name=signal_name)

    monkeypatch.setattr(train_net, "launch", launch)
    with pytest.raises(ends) as raised:
        train_net.main(["--num-gpus", "2"])
    assert getattr(raised.value, "code", None) == (3 if ends is SystemExit else None)
