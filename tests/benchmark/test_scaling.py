import json

import pytest

from iso_d2.benchmark import Options, scaling

TINY = Options(depth=8, batch=4, size=(16, 16), repeats=1)


def test_exponent_of_given_powers():
    assert scaling.fitted_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert scaling.fitted_exponent([10, 1000], [5, 0.5]) == pytest.approx(-0.5)


def test_sweeps_have_three_or_four_points_each():
    assert {axis: list(points) for axis, points in scaling.sweeps(TINY).items()} == {
        "depth": [8, 14, 20],
        "width of a 3x3 convolution": [64, 128, 256, 512],
        "images a step": [1, 2, 4, 8],
        "height of the images, pixels": [8, 12, 16, 24],
    }
    assert list(scaling.sweeps(Options())["depth"]) == [18, 34, 50, 101]


def test_tables_and_figure_of_a_sweep(tmp_path, monkeypatch):
    chosen = {"images a step": scaling.sweeps(TINY)["images a step"]}
    monkeypatch.setattr(scaling, "_with_processes", lambda options, number: {
        "processes": number, "ms": {"median": 8.0 / number, "q1": 1.0, "q3": 9.0}, "n": 5
    })  # fmt: skip
    file = tmp_path / "figures" / "scaling.png"
    batches, processes = scaling.measure_scaling(TINY, 0, file, chosen)
    assert [row["images a step"] for row in batches.rows] == [1, 2, 4, 8]
    assert "exponents: R-ISONet step: " in batches.title
    assert "share of a process: -1.00" in processes.title
    assert file.read_bytes().startswith(b"\x89PNG")


def test_depth_is_swept_with_both_penalties():
    cases = scaling.sweeps(TINY)["depth"][14]()
    assert list(cases) == [scaling.STEP_ISO, scaling.STEP_BN, scaling.PAPER, scaling.OURS]


def test_share_of_one_process_is_measured_by_round(tmp_path):
    scaling.measure_share(Options(depth=8, repeats=3), tmp_path / "seconds.json")
    times = json.loads((tmp_path / "seconds.json").read_text())
    assert len(times) == 3 and min(times) > 0
