import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from toy_runs import toy_repository, toy_run

from experiments.training import Training


@pytest.fixture
def root(tmp_path):
    return toy_repository(tmp_path)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def under_way(training):
    """In the block the training goes on in a thread; after it the thread has ended."""
    result = []
    thread = threading.Thread(target=lambda: result.append(training()))
    thread.start()
    try:
        yield result
    finally:
        thread.join()


def commands(run):
    return json.loads((run.root / run.folder / "commands.json").read_text())


@pytest.mark.parametrize(
    ("do", "error"),
    [
        ("train", ""),
        ("fail", "ValueError: no such thing"),
        ("diverge", "FloatingPointError: Loss became infinite or NaN at iteration=7!"),
    ],
)
def test_what_went_wrong_is_told(root, do, error):
    assert Training(toy_run(root, "a", do), 1)() == error


def test_each_command_is_accounted_for(root):
    run = toy_run(root, "a", evaluate="toy_train")
    (root / run.folder).mkdir(parents=True)
    (root / run.folder / "commands.json").write_text('[{"seconds": 1')  # damaged: no reason to stop
    assert Training(run, 1)() == ""
    assert (root / run.folder / "evaluated").read_text() == "('toy_train',)"
    train, test = commands(run)
    assert (train["evaluation_only"], test["evaluation_only"]) == (False, True)
    assert (train["from_iteration"], train["to_iteration"], test["from_iteration"]) == (0, 10, 10)
    # A few megabytes for Python, whatever the process of the tests holds
    assert 0 < train["peak_memory_mb"] < 100 and 0 <= train["seconds"] < 60
    assert (train["commit"], train["dirty"]) == ("unknown", False)


def test_a_folder_is_held_until_the_training_has_ended(root):
    run = toy_run(root, "a")
    training = Training(run, 1)
    with pytest.raises(BlockingIOError):
        Training(run, 1)
    training()
    assert Training(run, 1)() == ""


def test_a_training_that_has_outlived_its_tool_keeps_the_folder(root):
    run = toy_run(root, "a", "pause")
    training = Training(run, 1)
    with under_way(training):
        wait_for(lambda: run.iteration() == 3)
        os.close(training._lock)  # as when the tool is killed
        with pytest.raises(BlockingIOError):
            Training(run, 1)
        training._lock = os.open(root, os.O_RDONLY)
        (root / run.folder / "go").touch()
    assert Training(run, 1)() == ""


def test_a_stop_ends_the_processes_of_a_training_too_and_starts_no_other(root):
    run = toy_run(root, "a", "hang", evaluate="toy_train")
    training = Training(run, 1)
    with under_way(training) as result:
        wait_for(lambda: run.iteration() == 3)
        training.stop(signal.SIGTERM)
    assert result == ["stopped"] and len(commands(run)) == 1
    status = Path("/proc", (root / run.folder / "child").read_text(), "status")
    # Nobody may have waited for it yet; then it is a zombie.
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text())
    stopped = Training(run, 1)
    stopped.stop(signal.SIGTERM)
    assert stopped() == "stopped" and len(commands(run)) == 1


def test_old_checkpoints_go_but_for_two(root):
    run = toy_run(root, "a")
    training, folder = Training(run, 1), root / run.folder
    for number in (9, 19, 29, 39):
        (folder / f"model_{number:07d}.pth").touch()
    training.remove_old_checkpoints()
    assert len(list(folder.glob("model_*"))) == 4
    # 39 may be half written: it is not the last one yet
    (folder / "last_checkpoint").write_text("model_0000029.pth")
    training.remove_old_checkpoints()
    left = sorted(path.name for path in folder.glob("model_*"))
    assert left == ["model_0000019.pth", "model_0000029.pth", "model_0000039.pth"]
    (folder / "last_checkpoint").write_text("model_final.pth")
    training()
    assert [path.name for path in folder.glob("model_*")] == ["model_final.pth"]


def test_a_training_imports_the_code_beside_its_run(root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    training = Training(toy_run(root, "a"), 1)
    assert training._environment["PYTHONPATH"].split(os.pathsep) == [str(root.absolute()), "elsewhere"]
    assert training() == ""
