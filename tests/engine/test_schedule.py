import engine_toys
import pytest

from iso_d2.engine import Trainer
from iso_d2.engine.schedule import epochs_to_iterations

KEYS = ("SOLVER.EPOCHS", 5, "SOLVER.EPOCH_STEPS", (1, 3), "SOLVER.WARMUP_EPOCHS", 1, "TEST.EVAL_EPOCHS", 2)


# toy_train has 4 images: an epoch has 4 / batch iterations, also when that is no whole number.
@pytest.mark.parametrize("batch, expected", [(2, (10, (2, 6), 2, 4)), (3, (7, (1, 4), 1, 3))])
def test_epochs_become_iterations(batch, expected, toy_data, tmp_path, log):
    cfg = engine_toys.toy_config(tmp_path, *KEYS, "SOLVER.IMS_PER_BATCH", batch)
    cfg.freeze()
    changed = epochs_to_iterations(cfg)
    solver = changed.SOLVER
    assert expected == (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS, changed.TEST.EVAL_PERIOD)
    assert changed.is_frozen() and cfg.SOLVER.MAX_ITER == 3
    assert (
        f"SOLVER.EPOCHS 5, SOLVER.EPOCH_STEPS [1, 3], SOLVER.WARMUP_EPOCHS 1, TEST.EVAL_EPOCHS 2 at 4 images "
        f"an epoch and {batch} a batch: SOLVER.MAX_ITER {expected[0]}, STEPS {expected[1]}"
    ) in log.text


def test_images_of_all_training_sets_count(toy_data, tmp_path):
    names = ("toy_train", "toy_test")
    cfg = engine_toys.toy_config(tmp_path, "SOLVER.EPOCHS", 5, "DATASETS.TRAIN", names)
    assert epochs_to_iterations(cfg).SOLVER.MAX_ITER == 20


def test_without_epochs_nothing_changes(tmp_path):
    cfg = engine_toys.toy_config(tmp_path)
    assert epochs_to_iterations(cfg) is cfg


def test_steps_without_epochs(tmp_path):
    cfg = engine_toys.toy_config(tmp_path, "SOLVER.EPOCH_STEPS", (30, 60))
    with pytest.raises(ValueError, match=r"needs SOLVER\.EPOCHS above 0, got SOLVER\.EPOCH_STEPS \[30, 60\]"):
        epochs_to_iterations(cfg)


def test_the_trainer_runs_so_many_iterations(toy_data, tmp_path):
    trainer = Trainer(engine_toys.toy_config(tmp_path, "SOLVER.EPOCHS", 2, "SOLVER.EPOCH_STEPS", (1,)))
    trainer.train()
    assert trainer.iter == 4
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
