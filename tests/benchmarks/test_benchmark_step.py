import pytest

from benchmarks.networks import model_penalty
from benchmarks.options import Options
from benchmarks.step import measure_detectors, measure_step, targets

TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


def test_step_part_compares_with_all_norms():
    plain, optimized = measure_step(TINY, 0)
    assert [row["network"] for row in plain.rows] == ["R-ISONet-8", "ResNet-8 BN", "ResNet-8 FrozenBN"]
    assert plain.rows[0].keys() == {"network", "ms", "n", "images / s"}
    assert plain.rows[1]["ours over it"]["median"] > 0
    assert not any("target" in row for row in plain.rows)  # they are for depth 50
    assert "penalty, SGD" in optimized.rows[0]["network"]


def test_step_of_a_detector_with_and_without_penalty(tiny_detector, monkeypatch):
    # eight channels make no 32 groups
    monkeypatch.setattr("benchmarks.step.norms", lambda options: ("BN", "FrozenBN"))
    prepared = []
    monkeypatch.setattr(
        "benchmarks.step.model_penalty", lambda *given: prepared.append(1) or model_penalty(*given)
    )
    options = Options(depth=18, detector_size=(64, 64), repeats=1)
    table = measure_detectors(options, 0, [*tiny_detector, "ISO.ORTHO.PERIOD", 4])
    rows = {row["network"]: row for row in table.rows}
    assert list(rows) == [
        "R-ISONet-18 FPN",
        "R-ISONet-18 FPN, penalty at every step",
        "ResNet-18 FPN BN",
        "ResNet-18 FPN FrozenBN",
        "R-ISONet-18 FPN, penalty every 4th step, as configured (computed)",
    ]
    without, every, _, _, fourth = (row["ms"]["median"] for row in table.rows)
    assert prepared == [1]  # the penalty, before the steps and once
    assert fourth == pytest.approx(without + (every - without) / 4)
    assert rows["R-ISONet-18 FPN, penalty at every step"]["penalty's share"]["median"] == pytest.approx(
        (every - without) / every
    )


def test_targets_are_for_the_settings_that_they_speak_of(monkeypatch):
    assert targets(Options()) == {"ResNet-50 BN": 1.0}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # for the options alone
    assert targets(Options(device="cuda")) == {}
    as_meant = Options(device="cuda", dtype="bfloat16", channels_last=True)
    assert targets(as_meant) == {"ResNet-50 BN": 0.85, "ResNet-50 FrozenBN": 1.0}
