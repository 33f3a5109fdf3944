import math

import engine_toys
import pytest
import torch

from iso_d2.engine import Trainer
from iso_d2.engine.choices import (
    epochs_to_iterations,
    penalty_coefficient,
    penalty_mode,
    scale_lr_factor,
    sum_of_rates,
)
from iso_d2.engine.setup import load_config


def config(*opts):
    return load_config(opts=opts)


SHORT = ("SOLVER.BASE_LR", 0.1, "SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (50,))


def test_the_paper_s_signal_leaves_everything_as_the_paper_has_it():
    cfg = config(*SHORT)
    assert (penalty_coefficient(cfg), penalty_mode(cfg), scale_lr_factor(cfg)) == (1e-4, "paper", 0.1)


def test_the_scaled_signal_chooses_for_itself_what_is_not_given():
    cfg = config(*SHORT, "MODEL.ISONET.SIGNAL", "scaled")
    assert (penalty_mode(cfg), scale_lr_factor(cfg)) == ("spectral", 1.0)
    assert penalty_coefficient(cfg) == penalty_coefficient(config(*SHORT, "ISO.ORTHO.COEFF", "auto")) > 1e-3
    given = ("ISO.ORTHO.COEFF", 0.5, "ISO.ORTHO.MODE", "paper", "SOLVER.SCALE_LR_FACTOR", 0.0)
    cfg = config(*SHORT, "MODEL.ISONET.SIGNAL", "scaled", *given)
    assert (penalty_coefficient(cfg), penalty_mode(cfg), scale_lr_factor(cfg)) == (0.5, "paper", 0.0)


def test_a_unet_has_a_signal_of_its_own():
    cfg = config(*SHORT, "MODEL.UNET.SIGNAL", "scaled")
    assert penalty_mode(cfg) == "paper"
    plain = config(*SHORT)
    plain.MODEL.META_ARCHITECTURE = "UNetSegmentor"
    assert penalty_mode(plain) == "exact"
    cfg.MODEL.META_ARCHITECTURE = "UNetSegmentor"
    assert penalty_mode(cfg) == "spectral"


def test_the_sum_of_rates():
    assert sum_of_rates(config(*SHORT)) == pytest.approx(50 * 0.1 + 50 * 0.01)
    # linear warm-up from a thousandth of the rate
    warm = config(*SHORT, "SOLVER.WARMUP_ITERS", 20)
    expected = sum(0.1 * (1e-3 + i / 20 * (1 - 1e-3)) for i in range(20)) + 30 * 0.1 + 50 * 0.01
    assert sum_of_rates(warm) == pytest.approx(expected)
    long = ("SOLVER.MAX_ITER", 90_000, "SOLVER.STEPS", (60_000,), "SOLVER.WARMUP_ITERS", 0)
    assert sum_of_rates(config(*SHORT, *long)) == pytest.approx(6000 + 300, rel=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_auto_pulls_a_singular_value_back_whatever_the_schedule(momentum):
    """The penalty of a 1x1 kernel of one channel is 1/2 (w^2 - 1)^2: SGD on it alone."""
    left = []
    for steps, rate in ((200, 0.05), (2000, 0.05), (400, 0.2)):
        opts = (
            "SOLVER.BASE_LR",
            rate,
            "SOLVER.MAX_ITER",
            steps,
            "SOLVER.STEPS",
            (),
            "SOLVER.MOMENTUM",
            momentum,
        )
        gamma = penalty_coefficient(config(*SHORT, *opts, "ISO.ORTHO.COEFF", "auto"))
        weight = torch.tensor(1.001, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=rate, momentum=momentum)
        for _ in range(steps):
            optimizer.zero_grad()
            (gamma * 0.5 * (weight**2 - 1) ** 2).backward()
            optimizer.step()
        left.append(abs(weight.item() - 1) / 0.001)
    assert max(left) < math.exp(-3.5)  # PULL is 4


def test_auto_holds_a_singular_value_against_noise_of_any_rate():
    """In the stationary state; the noise is the same at each rate, and the steps are small."""
    variances = []
    for rate, momentum in ((0.02, 0.0), (0.08, 0.0), (0.02, 0.9)):
        opts = ("SOLVER.BASE_LR", rate, "SOLVER.MAX_ITER", 10**7, "SOLVER.STEPS", ())
        opts = (*opts, "SOLVER.MOMENTUM", momentum, "ISO.ORTHO.COEFF", "auto")
        gamma = penalty_coefficient(config(*SHORT, *opts))
        generator = torch.Generator().manual_seed(0)
        sigma, velocity = torch.ones(400, dtype=torch.float64), 0.0
        for _ in range(20_000):
            noise = 0.05 * torch.randn(400, dtype=torch.float64, generator=generator)
            velocity = momentum * velocity + 2 * gamma * (sigma**2 - 1) * sigma + noise
            sigma = sigma - rate * velocity
        variances.append(sigma.var().item())
    assert variances == pytest.approx([0.05**2 / (8 * 0.35)] * 3, rel=0.25)


def test_auto_never_falls_below_the_paper_s():
    long = ("SOLVER.BASE_LR", 1e-5, "SOLVER.MAX_ITER", 10**10, "SOLVER.STEPS", (), "SOLVER.MOMENTUM", 0.0)
    cfg = config(*long, "ISO.ORTHO.COEFF", "auto")
    assert penalty_coefficient(cfg) == pytest.approx(1e-4, rel=2e-3)


@pytest.mark.parametrize("coeff", ["Auto", True, [1]])
def test_what_is_no_coefficient(coeff):
    cfg = config(*SHORT)
    cfg.ISO.ORTHO.COEFF = coeff
    with pytest.raises(ValueError, match=r"ISO\.ORTHO\.COEFF must be a number, 'auto' or None, got"):
        penalty_coefficient(cfg)


def test_what_is_no_factor():
    with pytest.raises(ValueError, match=r"SCALE_LR_FACTOR must be a number or None, got 'auto'"):
        scale_lr_factor(config("SOLVER.SCALE_LR_FACTOR", "auto"))


@pytest.mark.parametrize("key, value", [("SOLVER.BASE_LR", 0.0), ("SOLVER.MOMENTUM", 1.0)])
def test_auto_needs_a_schedule(key, value):
    message = "needs a schedule with learning rates above 0 and a momentum below 1"
    with pytest.raises(ValueError, match=message):
        penalty_coefficient(config(*SHORT, key, value, "ISO.ORTHO.COEFF", "auto"))


EPOCHS = ("SOLVER.EPOCHS", 5, "SOLVER.EPOCH_STEPS", (1, 3), "SOLVER.WARMUP_EPOCHS", 1, "TEST.EVAL_EPOCHS", 2)


# toy_train has 4 images: an epoch has 4 / batch iterations, also when that is no whole number.
@pytest.mark.parametrize("batch, expected", [(2, (10, (2, 6), 2, 4)), (3, (7, (1, 4), 1, 3))])
def test_epochs_become_iterations(batch, expected, toy_data, tmp_path, log):
    cfg = engine_toys.toy_config(tmp_path, *EPOCHS, "SOLVER.IMS_PER_BATCH", batch)
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
