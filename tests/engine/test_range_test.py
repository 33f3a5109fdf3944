"""The learning-rate range test: rates, end, suggestion, files, and that it changes nothing."""

import csv

import kills
import pytest
import torch
from engine_toys import toy_config, trained
from PIL import Image

from iso_d2.commands import find_lr
from iso_d2.engine import Trainer
from iso_d2.engine.range_test import _RangeTrainer, range_test, smoothed, suggested_rate, write_range_test


@pytest.fixture(autouse=True)
def data(toy_data):
    pass


def test_smoothing_and_suggestion_by_hand():
    assert smoothed([1.0, 2.0, 4.0]) == pytest.approx([1, (0.9 + 2) / 1.9, (0.81 + 1.8 + 4) / 2.71])
    # smoothed: 5, 3.95, 3.2, 4.7
    assert suggested_rate([0.1, 0.2, 0.4, 0.8], [5.0, 3.0, 1.5, 8.0]) == pytest.approx(0.04)


def test_rates_rise_by_the_same_ratio_for_all_groups(tmp_path, monkeypatch):
    seen, step = [], torch.optim.SGD.step

    def look(self, *args):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", look)
    opts = "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.BASE_LR", 0.05, "MODEL.META_ARCHITECTURE", "ImageClassifier"
    opts += "DATASETS.TRAIN", ("shapes_cls_train",), "MODEL.BACKBONE.NAME", "build_isonet_backbone"
    opts += "MODEL.ISONET.DEPTH", 8, "MODEL.ISONET.STEM", "cifar", "MODEL.CLASSIFIER.NUM_CLASSES", 10
    rates, losses = range_test(toy_config(tmp_path, *opts), 1e-4, 1e-2, 11)
    assert rates == pytest.approx([1e-4 * 10 ** (i / 5) for i in range(11)])
    assert len(losses) == len(seen) == 11
    # the bias of the linear layer, and residual scales
    for rate, groups in zip(rates, seen, strict=True):
        assert sorted(set(groups)) == pytest.approx([0.1 * rate, rate, 2 * rate])


def test_it_ends_where_the_loss_has_risen(tmp_path, monkeypatch):
    """Smoothed by hand: 1 twelve times; then w = (1 - 0.9^12) / 0.1 = 7.176, (0.9 w + l) / (0.9 w + 1)."""
    for last, steps in ((25.0, 13), (15.0, 14)):  # 4.2 and 2.9
        losses = [1.0] * 12 + [last] * 2
        monkeypatch.setattr(
            Trainer,
            "run_step",
            lambda self, losses=losses: self.storage.put_scalar("total_loss", losses[self.iter]),
        )
        assert range_test(toy_config(tmp_path), steps=14)[1] == losses[:steps]


def test_it_ends_where_the_loss_is_not_finite(tmp_path):
    rates, losses = range_test(toy_config(tmp_path), 1e-3, 1e6, 40)
    assert 10 < len(rates) == len(losses) < 40
    assert smoothed(losses)[-2] <= 4 * min(smoothed(losses)[:-1])


def test_losses_are_those_before_the_steps_without_the_penalty(tmp_path):
    torch.manual_seed(0)
    plain = range_test(toy_config(tmp_path, "SEED", 1), 1e-9, 1e-8, 10)[1]
    torch.manual_seed(0)
    penalised = range_test(toy_config(tmp_path, "SEED", 1, "ISO.ORTHO.COEFF", 0.5), 1e-9, 1e-8, 10)[1]
    assert penalised == pytest.approx(plain, rel=1e-4)


def test_it_leaves_no_trace(tmp_path):
    trained(tmp_path / "plain")
    output = tmp_path / "out"
    cfg = toy_config(output, "SEED", 1, "TEST.BEST", ["bbox/AP", "max"], "SOLVER.EMA", 0.9)
    range_test(cfg, steps=10)
    assert not output.exists()
    trained(output)
    assert kills.digest(output) == kills.digest(tmp_path / "plain")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    range_test(cfg, steps=10)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_an_automatic_penalty_is_that_of_the_training(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(_RangeTrainer, "train", lambda self: found.append(self) or self.losses.append(1.0))
    opts = "ISO.ORTHO.COEFF", "auto", "SOLVER.MOMENTUM", 0.9, "SOLVER.MAX_ITER", 10, "SOLVER.STEPS", ()
    cfg = toy_config(tmp_path, "ISO.ORTHO.COEFF", None)
    cfg.merge_from_list(list(opts))
    range_test(cfg, steps=50)
    (hook,) = (hook for hook in found[0]._hooks if hasattr(hook, "coeff"))
    assert hook.coeff == pytest.approx(4 * 0.1 / (4 * 10 * 0.01))  # of 10 steps, not of 50


def test_files(tmp_path):
    rates, losses = [0.1, 0.2, 0.4, 0.8], [5.0, 3.0, 1.5, 8e9]
    write_range_test(rates, losses, tmp_path)
    header, *rows = csv.reader((tmp_path / "range_test.csv").open())
    assert header == ["learning_rate", "loss", "smoothed_loss"]
    assert [[float(x) for x in row[:2]] for row in rows] == [
        list(pair) for pair in zip(rates, losses, strict=True)
    ]
    assert [float(row[2]) for row in rows] == pytest.approx(smoothed(losses))
    with Image.open(tmp_path / "range_test.png") as picture:
        assert picture.size == (880, 495)


@pytest.mark.parametrize(
    "rates, opts",
    [((0, 1, 10), ()), ((1, 1, 10), ()), ((1, 2, 9), ()), ((1, 2, 10), ("SOLVER.BASE_LR", 0.0))],
)
def test_senseless_rates(tmp_path, rates, opts):
    with pytest.raises(ValueError, match=r"needs rates 0 < lowest < highest, at least 10 steps and a SOLVER"):
        range_test(toy_config(tmp_path, *opts), *rates)


def test_a_loss_that_is_never_finite(tmp_path):
    cfg = toy_config(tmp_path, "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0])
    weights = _RangeTrainer.build_model(cfg).state_dict()
    torch.save(
        {"model": {k: v.fill_(1e30) if v.is_floating_point() else v for k, v in weights.items()}},
        tmp_path / "w.pth",
    )
    cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"the loss is not finite, .* at the lowest rate, 0\.001"):
        range_test(cfg, 1e-3, 1, 10)


def test_command(tmp_path, capsys):
    opts = ["--opts", "MODEL.ISONET.DEPTH", "8", "SOLVER.IMS_PER_BATCH", "4", "MODEL.DEVICE", "cpu"]
    where = ["--output", str(tmp_path / "lr"), "--steps", "10"]
    find_lr.main(["--config-file", "quick/risonet20_shapes_cls", *where, *opts])
    assert "SOLVER.BASE_LR " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "lr").iterdir()} == {"range_test.csv", "range_test.png"}
    with pytest.raises(SystemExit, match="error: a range test needs rates"):
        find_lr.main(["--config-file", "quick/risonet20_shapes_cls", *where, "--lowest", "-1"])


@pytest.mark.parametrize(
    "losses, hint",
    [([1.0, 2.0, 3.0], "not fallen at any rate"), ([3.0, 2.0, 1.0], "still falls"), ([3.0, 1.0, 9.0], "")],
)
def test_a_minimum_at_an_end_is_told(tmp_path, capsys, monkeypatch, losses, hint):
    monkeypatch.setattr(find_lr, "range_test", lambda *_: ([0.1, 0.2, 0.4], losses))
    find_lr.main(["--config-file", "quick/isounet_phantom", "--output", str(tmp_path)])
    hints = capsys.readouterr().out.splitlines()[:-1]
    assert len(hints) == bool(hint) and hint in "".join(hints)
