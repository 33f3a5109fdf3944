import math

import numpy as np
import pytest
from toy_records import toy_record

from experiments.experiment import SCALES, TABLES
from experiments.figures import isometry_curves, write_figures
from experiments.isometry import isometry_of
from experiments.report import pictures

CIFAR10 = next(table for table in TABLES if table.name == "cifar10")


def values(**layers):
    """Lines' values as IsometryHook names them: layer of a backbone (__ for a dot) -> end -> value."""
    return {
        f"isometry/backbone.{layer.replace('__', '.')}{'_' if end else ''}{end}": value
        for layer, ends in layers.items()
        for end, value in ends.items()
    }


def test_layers_of_an_isonet_in_a_few_numbers():
    first = {"iteration": 391, "total_loss": 2.0, "ortho/total": 5.0, "ortho/backbone.stem.conv": 5.0}
    first |= values(
        stem__conv={"min": 0.0, "max": 30.0, "error": 29.0, "near": 0.0, "mean_square": 7.0},
        stem__srelu={"min": -1.5, "mean": -1.0, "max": -0.5, "held": 0.25, "mean_square": 7.0},
        stem={"signal": 1.0, "gradient": 0.5},
        res2__0__shortcut={"min": 0.9, "max": 1.0, "error": 0.1, "near": 1.0, "mean_square": 7.0},
        res2__0__branch__conv1={"min": 0.2, "max": 1.25, "error": 0.8, "near": 0.75, "mean_square": 7.0},
        res2__0__branch__conv2={"min": 0.70004, "max": 2.0, "error": 1.0, "near": 0.5, "mean_square": 7.0},
        res2__0__branch__srelu1={"min": -1.25, "mean": -1.0, "max": 0.5, "held": 0.0, "mean_square": 7.0},
        res2__0__srelu={"min": -1.0, "mean": -0.7, "max": -0.6, "held": 0.05, "mean_square": 7.0},
        res2__0__scale={"": -0.1},
        res2__0={"signal": 2.0, "gradient": 3.0},
        res2__1__scale={"": 0.4},
        res2__1={"signal": 2.0, "gradient": 1.0},
    )
    assert isometry_of([{"iteration": 390, "total_loss": 2.0, "ortho/total": 5.0}, first]) == [
        {
            "iteration": 391,
            # without the stem of 1, 1.25, 2 and of 0.9, 0.2, 0.70004 and of 0.1, 0.8, 1
            "sigma_max_median": 1.25,
            "sigma_max": 2.0,
            "sigma_min_median": 0.7,
            "error_median": 0.8,
            "near_mean": 0.75,
            # (0.25 + 0 + 0.05) / 3 and (-1 - 1 - 0.7) / 3
            "held_mean": 0.1,
            "threshold_mean": -0.9,
            "threshold_min": -1.5,
            "threshold_max": 0.5,
            "scale_mean": 0.15,
            "gradient_first": 0.5,
        }
    ]


def test_a_network_without_srelu_and_stem_has_fewer_of_them():
    line = {"iteration": 0} | values(
        res3={"gradient": 1.0}, res2={"gradient": 4.0}, a={"min": 0.0, "max": 3.0, "error": 2.0, "near": 0.1}
    )
    assert isometry_of([line, {"iteration": 1, "total_loss": 1.0}]) == [
        {
            "iteration": 0,
            "sigma_max_median": 3.0,
            "sigma_max": 3.0,
            "sigma_min_median": 0.0,
            "error_median": 2.0,
            "near_mean": 0.1,
            "gradient_first": 4.0,
        }
    ]
    assert isometry_of([{"iteration": 1, "total_loss": 1.0}]) == []


@pytest.mark.filterwarnings("error")
def test_a_layer_that_is_not_finite_is_not_hidden():
    bad = {"min": math.nan, "max": math.nan, "error": math.nan, "near": 0.0}
    good = {"min": 1.0, "max": 1.0, "error": 0.0, "near": 1.0}
    (entry,) = isometry_of([{"iteration": 0} | values(a=bad, b=good)])
    assert all(math.isnan(entry[name]) for name in ("sigma_max_median", "sigma_max", "error_median"))


def run(experiment, points, **more):
    """A record whose values at iterations 390 and 781, after one and two epochs, are those of `points`."""
    entries = [{"iteration": i, **point} for i, point in zip((390, 781), points, strict=False)]
    return toy_record(experiment, "cpu", isometry=entries, **more)


def test_a_line_of_each_experiment_is_the_mean_of_its_seeds():
    risonet, resnet = "cifar10-risonet-gamma1e-4", "cifar10-resnet-bn"
    first = [{"sigma_max_median": 1.0, "held_mean": 0.25}, {"sigma_max_median": 2.0, "held_mean": 0.5}]
    second = [{"sigma_max_median": 3.0, "held_mean": 0.75}, {"sigma_max_median": 6.0, "held_mean": 1.0}]
    records = {
        risonet: [
            run(risonet, first),
            run(risonet, second),
            run(risonet, [{"sigma_max_median": 9.0}], diverged=400),
        ],
        resnet: [run(resnet, [{"sigma_max_median": 8.0}]), toy_record(resnet, "cpu")],
        "cifar10-resnet-gn": [toy_record("cifar10-resnet-gn", "cpu")],  # from before there was an analysis
    }
    figure = isometry_curves(CIFAR10, {"cpu": records}, "cpu")
    largest, near, held, threshold = figure.axes
    assert [line.get_label() for line in largest.lines] == ["R-ISONet, gamma 1e-4", "ResNet, batch norm"]
    np.testing.assert_allclose(largest.lines[0].get_xydata(), [[1.00096, 2.0], [2.00192, 4.0]])
    np.testing.assert_allclose(largest.lines[1].get_xydata(), [[1.00096, 8.0]])
    np.testing.assert_allclose([line.get_ydata() for line in held.lines], [[50.0, 75.0]])
    assert not near.lines and not threshold.lines
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        line.get_label() for line in largest.lines
    ]
    assert isometry_curves(CIFAR10, {"cpu": {resnet: [toy_record(resnet, "cpu")]}}, "cpu") is None


def test_the_report_shows_it_below_the_table(tmp_path):
    record = run("cifar10-resnet-bn", [{"sigma_max_median": 8.0}])
    records = {scale: {"cifar10-resnet-bn": [record]} if scale == "cpu" else {} for scale in SCALES}
    drawn, _ = write_figures(tmp_path, records)
    names = ["reproduction_cifar10_cpu.png", "reproduction_isometry_cifar10_cpu.png"]
    assert [path.name for path in drawn] == names
    assert [line.split("/")[-1].rstrip(")") for line in pictures(tmp_path, CIFAR10)] == names
    assert not pictures(tmp_path, next(table for table in TABLES if table.name == "cifar100"))
