"""Trainings that go on with another config, and folders that hold another training."""

import pytest
import torch
from engine_toys import final, toy_config, trained

from iso_d2.engine import Trainer
from iso_d2.engine.earlier_training import changes


@pytest.fixture(autouse=True)
def data(toy_data):
    pass


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


def test_a_key_that_the_checkpoint_does_not_know_had_its_default(tmp_path):
    cfg = toy_config(tmp_path)
    earlier = cfg.clone()
    del earlier.TEST["BEST"]
    assert changes(earlier.dump(), cfg) == []
    cfg.TEST.BEST = ["bbox/AP", "max"]
    assert changes(earlier.dump(), cfg) == ["TEST.BEST [] -> ['bbox/AP', 'max']"]


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


def test_rates_of_torchs_own_schedulers_go_on(tmp_path):
    class Cosine(Trainer):
        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)

    def run(folder, steps):
        trainer = Cosine(toy_config(folder, "SEED", 1, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", steps))
        trainer.resume_or_load(resume=True)
        trainer.train()
        return trainer.optimizer.param_groups[0]["lr"]

    run(tmp_path / "parts", 4)
    assert run(tmp_path / "parts", 7) == run(tmp_path / "whole", 7)


def test_weights_of_another_program_in_the_folder(tmp_path):
    """They are neither gone on from nor refused."""
    trained(tmp_path / "other", resume=False)
    weights = tmp_path / "model_pretrained.pth"
    torch.save({"model": final(tmp_path / "other")["model"]}, weights)
    assert trained(tmp_path).start_iter == 0
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").unlink()
    trained(tmp_path, "MODEL.WEIGHTS", str(weights), resume=False)
    assert weights.is_file()


def test_a_lone_best_checkpoint_is_kept(tmp_path):
    trained(tmp_path, resume=False)
    (tmp_path / "model_final.pth").rename(tmp_path / "model_best.pth")
    (tmp_path / "last_checkpoint").unlink()
    with pytest.raises(FileExistsError, match="another config"):
        trained(tmp_path, "SOLVER.BASE_LR", 0.5, resume=False)
    trained(tmp_path, resume=False)
    assert (tmp_path / "earlier-1" / "model_best.pth").is_file()
