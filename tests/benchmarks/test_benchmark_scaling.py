import dataclasses
import json

import pytest
import torch
from detectron2.engine import launch

from benchmarks import scaling
from benchmarks.networks import isonet, penalised_convs
from benchmarks.options import Options

TINY = Options(depth=8, batch=4, size=(16, 16), repeats=1)


def test_exponent_of_given_powers():
    assert scaling.fitted_exponent({1: 3, 2: 12, 4: 48}) == pytest.approx(2)
    assert scaling.fitted_exponent({10: 5, 1000: 0.5}) == pytest.approx(-0.5)


def test_sweeps_have_three_or_four_points_each():
    assert {axis: list(points) for axis, points in scaling.sweeps(TINY).items()} == {
        "depth": [8, 14, 20],
        "width of a 3x3 convolution": [64, 128, 256, 512],
        "images a step": [1, 2, 4, 8],
        "height of the images, pixels": [8, 12, 16, 24],
    }
    assert list(scaling.sweeps(Options())["depth"]) == [18, 34, 50, 101]


@pytest.fixture
def batches_alone(monkeypatch, tmp_path):
    """The images a step are all that is swept; the folder of the figure."""
    chosen = {"images a step": scaling.sweeps(TINY)["images a step"]}
    monkeypatch.setattr(scaling, "sweeps", lambda options: chosen)
    monkeypatch.setattr(scaling, "FIGURES", tmp_path / "figures")
    return tmp_path / "figures"


def test_tables_and_figure_of_a_sweep(batches_alone, monkeypatch):
    monkeypatch.setattr(scaling, "_with_processes", lambda options, number: {
        "processes": number, "own, ms": {"median": 8.0 / number, "q1": 1.0, "q3": 9.0}, "n": 5
    })  # fmt: skip
    batches, processes = scaling.measure_scaling(TINY, 0)
    assert [row["images a step"] for row in batches.rows] == [1, 2, 4, 8]
    assert "exponents: R-ISONet step: " in batches.title
    assert "own: -1.00" in processes.title
    assert (batches_alone / "scaling_cpu.png").read_bytes().startswith(b"\x89PNG")


def test_depth_is_swept_with_both_penalties():
    cases = scaling.sweeps(TINY)["depth"][14]()
    assert list(cases) == [scaling.STEP_ISO, scaling.STEP_BN, scaling.PAPER, scaling.OURS]


def test_share_of_one_process_is_measured_by_round(tmp_path):
    scaling.measure_share(Options(depth=8, repeats=3), tmp_path / "seconds.json")
    measured = json.loads((tmp_path / "seconds.json").read_text())
    assert len(measured["seconds"]) == 3 and min(measured["seconds"]) > 0
    assert measured["layers"] == [penalised_names()]


def penalised_names():
    net = isonet(TINY)
    convs = penalised_convs(net)
    return [f"backbone.{name}.weight" for name, module in net.named_modules() if module in convs]


def test_two_processes_divide_the_layers(tmp_path):
    launch(scaling.measure_share, 2, dist_url="auto", args=(TINY, tmp_path / "seconds.json"))
    measured = json.loads((tmp_path / "seconds.json").read_text())
    first, second = measured["layers"]
    assert first and second and not set(first) & set(second)
    assert sorted(first + second) == sorted(penalised_names())
    assert len(measured["seconds"]) == 1


def test_row_of_processes_says_how_many_layers_each_has(monkeypatch):
    def two(function, number, dist_url, args):
        args[1].write_text(json.dumps({"seconds": [0.002, 0.004], "layers": [["a", "b"], ["c"]]}))

    monkeypatch.setattr(scaling, "launch", two)
    row = scaling._with_processes(TINY, 2)
    quartiles = {"median": 3, "q1": 2.5, "q3": 3.5}
    assert row == {"processes": 2, "layers": "2 + 1", scaling.OWN_WORK: quartiles, "n": 2}


@pytest.mark.parametrize(
    ("device", "gpus", "possible"),
    [("cpu", 0, True), ("cpu", 1, False), ("cpu", 2, False), ("cuda", 1, False), ("cuda", 2, True)],
)
def test_two_processes_are_launched_where_each_has_its_device(monkeypatch, device, gpus, possible):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert scaling.can_launch_two(device) == possible


def test_processes_are_not_swept_where_they_cannot_be_launched(batches_alone, monkeypatch):
    monkeypatch.setattr(scaling, "can_launch_two", lambda device: False)
    monkeypatch.setattr(scaling, "_with_processes", lambda *_: pytest.fail("launched"))
    (batches,) = scaling.measure_scaling(TINY, 0)
    assert batches.title.startswith("Growth with images a step")


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "float32"), ("bfloat16", "bf16, penalties float32")]
)
def test_rows_say_the_precision_of_steps_and_of_penalties(batches_alone, monkeypatch, dtype, precision):
    row = {"processes": 1, "own, ms": {"median": 8.0, "q1": 1.0, "q3": 9.0}, "n": 5}
    monkeypatch.setattr(scaling, "can_launch_two", lambda device: True)
    monkeypatch.setattr(scaling, "_with_processes", lambda options, n: {**row, "processes": n})
    tables = scaling.measure_scaling(dataclasses.replace(TINY, dtype=dtype), 0)
    found = [{row["precision"] for row in table.rows} for table in tables]
    assert found == [{precision}, {"float32"}]
