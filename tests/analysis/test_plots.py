import pytest
from PIL import Image

from iso_d2.analysis.plots import plot_depth, plot_jacobian, plot_layers


@pytest.fixture
def draw(tmp_path):
    """Function that draws to a file and gives the picture's width and height in pixels."""

    def draw(plot, models):
        plot(models, tmp_path / "plot.png")
        return Image.open(tmp_path / "plot.png").size

    return draw


def layers(number):
    return {f"conv{i}": {"sigma_min": 0.0, "sigma_median": 1.0, "sigma_max": 2.0} for i in range(number)}


def test_there_is_a_panel_for_each_model(draw):
    width, height = draw(plot_layers, {"a": layers(2)})
    assert draw(plot_layers, {"a": layers(2), "b": layers(100)}) == (
        width,
        pytest.approx(1.76 * height, rel=0.01),
    )


def test_models_of_different_depth(draw):
    point = {"signal_rms": 1.0, "signal_norm": 0.0, "gradient_norm": 2.0}
    assert draw(plot_depth, {"a": {"input": point}, "b": {"stem": point, "res2": point}})[0] > 500


def test_a_panel_for_each_start_that_some_model_has(draw):
    found = {"values": [2.0, 0.0], "shares": [0.5, 0.5]}
    width, height = draw(plot_jacobian, {"a": [{"image": found}, {"image": found}]})
    assert draw(plot_jacobian, {"a": [{"image": found}], "b": [{"image": found, "stem": found}]}) == (
        2 * width,
        height,
    )
