"""When checkpoints are written, and which stay."""

import os
import signal

import pytest
import torch
from detectron2.engine import HookBase
from engine_toys import At, toy_config, trained

from iso_d2.engine import Trainer
from iso_d2.engine.checkpoint_hooks import BestCheckpointHook, CheckpointHook


@pytest.fixture(autouse=True)
def data(toy_data, usual_handlers):
    pass


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
    opts = "SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.CHECKPOINTS_KEPT", 2
    found = []
    for step in (1, 9, 20):
        with pytest.raises(SystemExit):
            trained(tmp_path, *opts, hook=At(step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        found.append(sorted(int(f.stem[6:]) for f in tmp_path.glob("model_*")))
    # the signal is seen one step later; those of every 4th step are 3, 7, 11, ...
    assert found == [[2], [3, 7, 10], [15, 19, 21]]


@pytest.mark.parametrize("key", ["CHECKPOINT_PERIOD", "CHECKPOINT_MINUTES", "CHECKPOINTS_KEPT"])
def test_senseless_checkpoint_keys(tmp_path, key):
    with pytest.raises(
        ValueError, match=r"SOLVER\.CHECKPOINT_PERIOD must be at least 1, CHECKPOINT_MINUTES and"
    ):
        Trainer(toy_config(tmp_path, f"SOLVER.{key}", -1.0 if key == "CHECKPOINT_MINUTES" else -1))


def test_the_best_checkpoint_stays_and_is_not_the_one_to_go_on_from(tmp_path):
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


def run_with_values(tmp_path, values, steps):
    """A training that evaluates to these values, step by step, and after its end."""
    values = iter(values)

    class Write(HookBase):
        def after_step(self):
            self.trainer.storage.put_scalar("score", next(values), smoothing_hint=False)

        def after_train(self):
            last = next(values, None)
            if last is not None:
                self.trainer.storage.put_scalar("score", last, smoothing_hint=False)

    trainer = Trainer(toy_config(tmp_path, "SEED", 1, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", steps))
    trainer.register_hooks([Write(), BestCheckpointHook(trainer.checkpointer, "score")])
    trainer.resume_or_load(resume=True)
    trainer.train()
    best = torch.load(tmp_path / "model_best.pth")
    return best["iteration"], best["metric"]


def test_values_that_are_not_finite_are_not_the_best(tmp_path):
    assert run_with_values(tmp_path, [float("nan"), 2.0, float("inf")], 3) == (1, 2.0)


def test_the_last_evaluation_counts(tmp_path):
    assert run_with_values(tmp_path, [1.0, 2.0, 1.5, 9.0], 3) == (2, 9.0)


def test_a_damaged_best_checkpoint_does_not_count(tmp_path, log):
    run_with_values(tmp_path, [5.0, 1.0], 2)
    (tmp_path / "model_best.pth").write_bytes(b"half")
    assert run_with_values(tmp_path, [2.0], 3) == (2, 2.0)
    assert "does not count, it is damaged" in log.text


def test_handlers_of_the_users_own_stay(tmp_path):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        trained(tmp_path, hook=At(1, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]
