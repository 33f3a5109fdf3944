"""Early stopping, and metrics that no evaluation gives."""

import fnmatch
import os
import signal

import kills
import pytest
import torch
from detectron2.engine import HookBase, launch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from engine_toys import At, final, toy_config

from iso_d2.engine import Trainer
from iso_d2.evaluation.build import possible_metrics

# After step 3 the best; then twice worse and once as good
VALUES = {1: 10.0, 3: 30.0, 5: float("nan"), 7: 30.0, 9: 25.0, 11: 99.0}
OPTS = "SEED", 1, "SOLVER.MAX_ITER", 12, "TEST.EVAL_PERIOD", 2, "TEST.BEST", ["bbox/AP", "max"]


@pytest.fixture(autouse=True)
def data(toy_data, usual_handlers):
    pass


class Steps(HookBase):
    def __init__(self):
        self.taken = []

    def before_step(self):
        self.taken.append(self.trainer.iter)


@pytest.fixture
def run(monkeypatch):
    """Function that trains with given values of the metric by step, and returns the trainer and the steps."""

    def train(folder, *opts, values=VALUES, hook=None):
        torch.manual_seed(0)
        trainer, steps = Trainer(toy_config(folder, *OPTS, *opts)), Steps()

        def evaluate(cls, cfg, model):
            # that of the last step comes when the training is over
            return {"bbox": {"AP": values[min(trainer.iter, trainer.max_iter - 1)]}}

        monkeypatch.setattr(Trainer, "test", classmethod(evaluate))
        trainer.register_hooks([steps, *([hook] if hook else [])])
        trainer.resume_or_load(resume=True)
        trainer.train()
        return trainer, steps.taken

    return train


def test_patience_by_hand(tmp_path, run, log):
    _, steps = run(tmp_path, "TEST.PATIENCE", 3)
    assert steps == list(range(10))
    assert final(tmp_path)["iteration"] == 9
    best = torch.load(tmp_path / "model_best.pth")
    assert (best["iteration"], best["metric"]) == (3, 30.0)
    wanted = "Stopped early after step 9: 3 evaluations (TEST.PATIENCE 3) without a better bbox/AP than 30.0"
    assert wanted in log.text
    assert run(tmp_path / "4", "TEST.PATIENCE", 4)[1] == list(range(12))  # the last evaluation is too late
    falling = {step: -value for step, value in VALUES.items()}
    lower = "TEST.BEST", ["bbox/AP", "min"], "TEST.PATIENCE", 3
    assert run(tmp_path / "min", *lower, values=falling)[1] == list(range(10))
    assert torch.load(tmp_path / "min" / "model_best.pth")["metric"] == -30.0


def test_a_stopped_training_goes_on_only_with_more_patience(tmp_path, run):
    run(tmp_path, "TEST.PATIENCE", 3)
    digest = kills.digest(tmp_path)
    assert run(tmp_path, "TEST.PATIENCE", 3)[1] == []
    assert kills.digest(tmp_path) == digest
    assert run(tmp_path, "TEST.PATIENCE", 4)[1] == [10, 11]


def test_a_first_value_that_is_not_finite_is_no_best(tmp_path, run):
    values = {1: float("inf"), 3: 20.0, 5: 30.0, 7: 40.0, 9: 50.0, 11: 60.0}
    assert run(tmp_path, "TEST.PATIENCE", 3, values=values)[1] == list(range(12))


@pytest.mark.parametrize("step", [2, 5])
def test_an_interrupted_training_stops_at_the_same_step(tmp_path, run, step):
    """The signal is seen after the next step, before that step's evaluation, which is made up for."""
    run(tmp_path / "whole", "TEST.PATIENCE", 3)
    with pytest.raises(SystemExit):
        run(
            tmp_path / "parts",
            "TEST.PATIENCE",
            3,
            hook=At(step, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
        )
    _, steps = run(tmp_path / "parts", "TEST.PATIENCE", 3)
    assert steps == list(range(step + 2, 10))
    assert kills.digest(tmp_path / "parts") == kills.digest(tmp_path / "whole")
    parts, whole = (torch.load(tmp_path / name / "model_best.pth") for name in ("parts", "whole"))
    assert parts["metric"] == whole["metric"] == 30.0
    assert parts["iteration"] == whole["iteration"] == parts["trainer"]["iteration"] == 3


def test_an_improvement_counts_though_its_file_is_there_already(tmp_path, run):
    """Killed after the evaluation of step 3, which goes on from the checkpoint of step 2."""

    def fail():
        raise RuntimeError("killed")

    opts = "TEST.PATIENCE", 3, "SOLVER.CHECKPOINT_PERIOD", 3
    with pytest.raises(RuntimeError):
        run(tmp_path, *opts, hook=At(4, fail))
    assert torch.load(tmp_path / "model_best.pth")["metric"] == 30.0
    assert run(tmp_path, *opts)[1] == list(range(3, 10))


def test_a_stop_checks_the_expected_results(tmp_path, run):
    expected = "TEST.PATIENCE", 3, "TEST.EXPECTED_RESULTS"
    run(tmp_path / "as", *expected, [["bbox", "AP", 25.0, 0.1]])
    with pytest.raises(SystemExit):
        run(tmp_path / "not", *expected, [["bbox", "AP", 80.0, 0.1]])


def stop_in_one_process(folder):
    """The main process alone has results."""
    torch.set_num_threads(1)
    trainer, steps = Trainer(toy_config(folder, *OPTS, "TEST.PATIENCE", 2, "SOLVER.EMA", 0.9)), Steps()
    trainer.test = lambda cfg, model: {"bbox": {"AP": 1.0}} if comm.is_main_process() else {}
    trainer.register_hooks([steps])
    trainer.train()
    (folder / f"rank{comm.get_rank()}").write_text(str(steps.taken[-1]))


def test_all_processes_stop(tmp_path, forked):
    launch(stop_in_one_process, 2, dist_url="auto", args=(tmp_path,))
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["5", "5"]
    assert final(tmp_path)["iteration"] == 5


@pytest.mark.parametrize(
    "opts",
    [
        ["TEST.PATIENCE", 2, "TEST.BEST", []],
        ["TEST.PATIENCE", 2, "TEST.EVAL_PERIOD", 0],
        ["TEST.PATIENCE", -1],
    ],
)
def test_patience_that_cannot_work(tmp_path, opts):
    with pytest.raises(ValueError, match=r"TEST\.PATIENCE must be 0 .* a number of evaluations"):
        Trainer(toy_config(tmp_path, *OPTS, *opts))


@pytest.mark.parametrize("best", [["bbox/AP"], ["bbox/AP", 1], ["bbox/AP", "max", "min"]])
def test_best_is_a_metric_and_a_direction(tmp_path, best):
    with pytest.raises(ValueError, match=r"TEST\.BEST must be \[metric, 'max' or 'min'\] of the evaluation"):
        Trainer(toy_config(tmp_path, "TEST.BEST", best))


def test_metrics_that_no_evaluator_has_are_named_before_training(tmp_path):
    for metric in ("bbox/AP5", "accuracy", "toy_test/bbox/AP"):
        with pytest.raises(
            ValueError, match=f"names '{metric}', which no evaluation gives. .* bbox/AP, bbox/AP50"
        ):
            Trainer(toy_config(tmp_path, "TEST.BEST", [metric, "max"]))
    with pytest.raises(ValueError, match=r"of the evaluation of DATASETS\.TEST, got .* \(\)"):
        Trainer(toy_config(tmp_path, "TEST.BEST", ["bbox/AP", "max"], "DATASETS.TEST", ()))
    several = "DATASETS.TEST", ("toy_test", "toy_train"), "TEST.BEST"
    Trainer(toy_config(tmp_path, *several, ["toy_train/bbox/AP", "max"]))
    with pytest.raises(ValueError, match="There are: toy_test/bbox/AP,"):
        Trainer(toy_config(tmp_path, *several, ["bbox/AP", "max"]))


def test_others_are_named_at_the_first_evaluation(tmp_path):
    # AP of each class, of which the toys have one, and Detectron2 then leaves it out
    trainer = Trainer(toy_config(tmp_path, *OPTS, "TEST.BEST", ["bbox/AP-square", "max"]))
    with pytest.raises(
        ValueError, match=r"names 'bbox/AP-square', which the evaluation does not give\. It gives bb"
    ):
        trainer.train()
    assert trainer.iter == 1


def test_evaluators_of_ones_own_have_metrics_of_their_own(tmp_path):
    class Mine(DatasetEvaluator):
        def process(self, *_):
            pass

        def evaluate(self):
            return {"mine": {"score": 3.0}}

    class MyTrainer(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return Mine()

    trainer = MyTrainer(toy_config(tmp_path, *OPTS, "TEST.BEST", ["mine/score", "max"]))
    trainer.train()
    assert torch.load(tmp_path / "model_best.pth")["metric"] == 3.0


def test_distances_are_possible_where_there_is_a_spacing():
    assert "segmentation/hd95_mean" in possible_metrics(["phantom_test"], has_spacing=True)
    assert "segmentation/hd95_mean" not in possible_metrics(["phantom_test"], has_spacing=False)


def test_a_detector_gives_what_is_possible(tmp_path):
    cfg = toy_config(tmp_path)
    found = Trainer.test(cfg, Trainer.build_model(cfg).eval())["bbox"]
    assert found
    for name in found:
        assert any(fnmatch.fnmatchcase(f"bbox/{name}", pattern) for pattern in possible_metrics(["toy_test"]))
