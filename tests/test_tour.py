"""The tour runs from top to bottom, what its text says is so, and its outputs are in the file."""

import contextlib
import io
import json
import logging
import re
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib import pyplot as plt

TOUR = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"
CELLS = json.loads(TOUR.read_text())["cells"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(what the cells define, what they print, how many figures they show)."""
    shown, printed, names = [], io.StringIO(), {"__name__": "__main__"}
    state = torch.random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), matplotlib.rc_context():
        patch.setattr(plt, "show", lambda: shown.append(plt.gcf()) or plt.close("all"))
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("tour")))
        plt.switch_backend("agg")
        for cell in CELLS:
            if cell["cell_type"] == "code":
                with contextlib.redirect_stdout(printed):
                    exec(compile("".join(cell["source"]), f"{TOUR.name}, {cell['id']}", "exec"), names)
    logging.disable(logging.NOTSET)
    torch.random.set_rng_state(state)
    return names, printed.getvalue(), len(shown)


def test_what_it_says_is_so(ran):
    names, printed, _ = ran
    assert names["penalties"]["PyTorch's default"] > 1
    assert max(names["penalties"]["delta kernel"], names["penalties"]["random isometry"]) < 1e-6
    assert names["loss"].item() < 0.01 * names["penalties"]["PyTorch's default"]
    assert len(names["clipped"]["paper"]) == 19
    assert min(names["clipped"]["scaled"]) > 2.1 > max(names["clipped"]["paper"])
    assert names["accuracy"]["paper"] < 40 and names["accuracy"]["scaled"] > 70
    assert [index for _, index in names["trainer"].storage.history("total_loss").values()][-1] in (61, 62)
    assert min(names["overlaps"]) > 0.8
    assert 0.4 < min(names["sizes"]["isometrized"]) < max(names["sizes"]["isometrized"]) < 1.5
    assert "20 normalization layers removed" in printed
    assert re.search(r"largest difference to the network: \de-0[5-9]|^Not exported: .*export", printed, re.M)


def test_its_outputs_are_those_of_its_code(ran):
    """The lines that are in the file are those that are printed now, but for the figures in them."""
    _, printed, figures = ran
    outputs = [output for cell in CELLS for output in cell.get("outputs", [])]
    kept = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    if "Not exported" not in printed:
        assert without_numbers(kept) == without_numbers(printed)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert TOUR.stat().st_size < 400_000


def without_numbers(text):
    text = re.sub(r"^\['.*\n", "", text, flags=re.M)  # the trained networks, of which more may come
    return re.sub(r"\s*\d+\.?\d*(e-\d+)?", " #", text).split()
