"""Trainings that were interrupted, and folders that hold another one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import kills
import pytest
import torch
from detectron2.engine import HookBase
from engine_toys import toy_config

from iso_d2.engine import Trainer
from iso_d2.engine.checkpoint_hooks import CheckpointHook

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def data(toy_data):
    pass


def trained(folder, *opts, resume=True, hook=None):
    torch.manual_seed(0)
    trainer = Trainer(toy_config(folder, "SEED", 1, "DATASETS.TEST", "()", *opts))
    if hook:
        trainer.register_hooks([hook])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def final(folder):
    return torch.load(folder / "model_final.pth")


class At(HookBase):
    """Calls a function after a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def after_step(self):
        if self.trainer.iter == self.step:
            self.function()


def test_killed_trainings_end_with_the_same_weights(tmp_path):
    # in a process of its own, which forks the trainings: this one may have threads already
    output = tmp_path / "counts.json"
    command = [sys.executable, "-m", "tests.kills", "classifier", "--kills", "2", "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    counts = json.loads(output.read_text())["classifier"]
    assert counts["kills"] == 2
    assert counts["equal"] == counts["finished"] >= 1


def test_spectral_penalty_and_fraction_go_on_exactly(tmp_path):
    for mode in ("spectral", "exact"):
        opts = "ISO.ORTHO.MODE", mode, "ISO.ORTHO.COEFF", 0.5, "ISO.ORTHO.BOUND", 0.3, "SOLVER.MAX_ITER", 6
        opts += ("ISO.ORTHO.FRACTION", 0.4) if mode == "exact" else ()
        trained(tmp_path / f"{mode}whole", *opts)
        with pytest.raises(SystemExit):
            trained(tmp_path / mode, *opts, hook=At(2, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
        trained(tmp_path / mode, *opts)
        assert kills.digest(tmp_path / mode) == kills.digest(tmp_path / f"{mode}whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        trained(tmp_path, "SOLVER.MAX_ITER", 9, hook=At(3, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.code == 128 + number
    # the toy's hook comes after the one that saves, which sees the signal one step later
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert signal.getsignal(number) == before
    assert trained(tmp_path, "SOLVER.MAX_ITER", 9).start_iter == 5


def test_checkpoints_by_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("iso_d2.engine.checkpoint_hooks.time.monotonic", lambda: now[0])

    def pass_time():
        now[0] += 60

    class Clock(HookBase):
        def before_step(self):
            pass_time()

    names = []
    monkeypatch.setattr(
        CheckpointHook,
        "_save",
        lambda self, step, *_: names.append(step) or setattr(self, "_saved_at", now[0]),
    )
    trained(tmp_path, "SOLVER.MAX_ITER", 7, "SOLVER.CHECKPOINT_MINUTES", 2.0, hook=Clock())
    assert names == [1, 3, 5, 6]


def test_which_checkpoints_stay(tmp_path):
    opts = "SOLVER.MAX_ITER", 9, "SOLVER.CHECKPOINT_PERIOD", 2
    trained(tmp_path / "all", *opts)
    names = [f"model_000000{step}.pth" for step in (1, 3, 5, 7)]
    assert sorted(f.name for f in (tmp_path / "all").glob("model_*")) == [*names, "model_final.pth"]
    trained(tmp_path / "two", *opts, "SOLVER.CHECKPOINTS_KEPT", 2)
    assert sorted(f.name for f in (tmp_path / "two").glob("model_*")) == [*names[2:], "model_final.pth"]


def test_a_checkpoint_due_to_a_signal_goes_with_the_next(tmp_path):
    with pytest.raises(SystemExit):
        trained(tmp_path, "SOLVER.MAX_ITER", 9, hook=At(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert sorted(f.name for f in tmp_path.glob("model_*")) == ["model_0000003.pth"]


@pytest.mark.parametrize("key", ["CHECKPOINT_PERIOD", "CHECKPOINT_MINUTES", "CHECKPOINTS_KEPT"])
def test_senseless_checkpoint_keys(tmp_path, key):
    with pytest.raises(
        ValueError, match=r"SOLVER\.CHECKPOINT_PERIOD must be at least 1, CHECKPOINT_MINUTES and"
    ):
        Trainer(toy_config(tmp_path, f"SOLVER.{key}", -1.0 if key == "CHECKPOINT_MINUTES" else -1))


def test_the_new_learning_rate_counts_and_is_told(tmp_path, log):
    trained(tmp_path, "SOLVER.MAX_ITER", 3)
    trainer = trained(tmp_path, "SOLVER.MAX_ITER", 5, "SOLVER.BASE_LR", 0.003, "SOLVER.STEPS", "(4,)")
    assert "new values count: SOLVER.BASE_LR 0.01 -> 0.003; SOLVER.MAX_ITER 3 -> 5; SOLVER.STEPS" in log.text
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.0003])
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.003}


def test_an_unchanged_config_is_no_news(tmp_path, log):
    trained(tmp_path)
    trained(tmp_path, "MODEL.DEVICE", "cpu")
    assert "has changed" not in log.text


def test_a_random_seed_is_kept(tmp_path):
    seeds = [trained(tmp_path, "SEED", -1, "SOLVER.MAX_ITER", n).cfg.SEED for n in (2, 4)]
    assert seeds[0] == seeds[1] >= 0


def test_another_number_of_processes_is_refused(tmp_path):
    trained(tmp_path)
    state = final(tmp_path)
    state["trainer"]["processes"] = 2
    torch.save(state, tmp_path / "model_final.pth")
    with pytest.raises(ValueError, match=r"with 2 processes, this one has 1 .* --num-gpus 2"):
        trained(tmp_path)


def test_the_same_training_again_sets_the_old_checkpoints_aside(tmp_path):
    trained(tmp_path, resume=False)
    first = (tmp_path / "model_final.pth").read_bytes()
    trained(tmp_path, resume=False)
    assert (tmp_path / "earlier-1" / "model_final.pth").read_bytes() == first
    assert (tmp_path / "earlier-1" / "last_checkpoint").read_text() == "model_final.pth"
    assert (tmp_path / "model_final.pth").is_file()


def test_weights_may_come_from_the_folder_that_is_set_aside(tmp_path):
    trained(tmp_path, resume=False)
    trained(tmp_path, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), resume=False)
    assert (tmp_path / "earlier-1").is_dir()


def test_a_folder_of_another_training_is_refused(tmp_path):
    trained(tmp_path, resume=False)
    with pytest.raises(
        FileExistsError, match=r"another config \(SOLVER.BASE_LR 0.01 -> 0.5\). --resume goes on"
    ):
        trained(tmp_path, "SOLVER.BASE_LR", 0.5, resume=False)
    assert (tmp_path / "model_final.pth").is_file()


def test_a_folder_with_lost_last_checkpoint_is_not_overwritten(tmp_path):
    trained(tmp_path, resume=False)
    (tmp_path / "last_checkpoint").unlink()
    trained(tmp_path, resume=False)
    assert (tmp_path / "earlier-1" / "model_final.pth").is_file()


def test_the_best_checkpoint_stays_and_is_not_the_one_to_go_on_from(tmp_path):
    from iso_d2.engine.checkpoint_hooks import BestCheckpointHook

    values = iter([1.0, 3.0, 2.0, 2.5, 4.0])

    class Write(HookBase):
        def after_step(self):
            self.trainer.storage.put_scalar("score", next(values), smoothing_hint=False)

    def run(steps):
        trainer = Trainer(toy_config(tmp_path, "SEED", 1, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", steps))
        trainer.register_hooks([Write(), BestCheckpointHook(trainer.checkpointer, "score")])
        trainer.resume_or_load(resume=True)
        trainer.train()
        return torch.load(tmp_path / "model_best.pth")

    best = run(3)
    assert (best["iteration"], best["metric"]) == (1, 3.0)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    best = run(4)
    assert (best["iteration"], best["metric"]) == (1, 3.0)
    best = run(5)
    assert (best["iteration"], best["metric"]) == (4, 4.0)


def test_best_needs_max_or_min(tmp_path):
    with pytest.raises(ValueError, match="'max' or 'min'"):
        Trainer(toy_config(tmp_path, "TEST.BEST", ["bbox/AP", "most"]))


def test_histories_stay_short(tmp_path):
    trainer = trained(tmp_path, "SOLVER.MAX_ITER", 2)
    assert {h._max_length for h in trainer.storage.histories().values()} == {1000}
