"""The page of a run, parsed without a browser."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from report_toys import HOSTILE, NAMES, row, write_run

from iso_d2.commands import report, train
from iso_d2.reporting import reading
from iso_d2.reporting.charts import line_chart, number, thinned

VOID = {"meta", "link", "img", "input", "br"}


class Parsed(HTMLParser):
    """Checks that elements are closed in order; collects tags with attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_whole_and_takes_nothing_from_elsewhere(pages, name):
    page = Parsed(pages[name].read_text())
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids) and {"curves", "run"} <= set(ids)
    for tag, attrs in page.tags:
        for key in ("src", "href"):
            assert re.match(r"data:|#", attrs.get(key, "#")), (tag, attrs)
            if attrs.get(key, "").startswith("#"):
                assert attrs[key][1:] in ids
        assert not any(key.startswith("on") for key in attrs)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not re.search(r"https?:|url\(|@import", pages[name].read_text())


def text(pages, name):
    return " ".join(" ".join(Parsed(pages[name].read_text()).text).split())


def test_what_the_pages_say(pages):
    detector = text(pages, "detector")
    for part in (
        "bbox AP, IoU 0.50 to 0.95 30 %",
        "iso-d2 train --config-file a.yaml",
        "abc123",
        "9.9",
        "res2.conv",
    ):
        assert part in detector, part
    assert detector.count(HOSTILE) == 2  # in the table of classes and under its picture
    assert "not finished: iteration 39 of 90" in text(pages, "killed")
    assert "Command, commit and versions were not recorded" in text(pages, "killed")
    diverged = text(pages, "diverged")
    assert "2 values are not finite (▼), the first at iteration 79" in diverged
    unet = text(pages, "unet")
    assert unet.index("p90.0") < unet.index("p70.0") < unet.index("p60.0")
    classifier = text(pages, "classifier")
    assert "Confusion matrix" in classifier and f"{HOSTILE} (1)" in classifier
    # worst first: 0 of 2, 3 of 4
    assert re.search(re.escape(HOSTILE) + r" 2 0 cat \(2\) cat 4 75 ", classifier)


def test_pictures_are_cut_into_their_panels(pages):
    page = Parsed(pages["detector"].read_text())
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [attrs["alt"].rsplit(": ", 1)[1] for attrs in images] == ["truth", "prediction"] * 3
    assert {(attrs["width"], attrs["height"]) for attrs in images} == {("80", "60")}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "has no metrics.json"),
        ("", "has no value"),
        ("[]\n1", "has no value"),
        ("[" * 100_000, "has no value"),
        ('{"iteration": -5, "total_loss": 1}', "has no value"),
        ('{"iteration": 0, "total_loss": 1}\n{"iteration": 0, "total_loss": "x"}', "has no value"),
    ],
)
def test_a_folder_without_metrics_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        report.main([str(tmp_path)])


@pytest.mark.parametrize(
    "file, content",
    [
        ("metrics.json", '{"iteration": 0, "total_loss": 1.7e308}\n{"iteration": 9, "total_loss": -1.7e308}'),
        ("metrics.json", '{"iteration": 0, "total_loss": 5e-324}'),
        ("metrics.json", '{"iteration": 0, "total_loss": 1%s, "lr": 0.1}' % (400 * "0")),
        ("config.yaml", "SOLVER:\nDATASETS: 3"),
        ("config.yaml", "SOLVER: [1]"),
        ("inference/a/classification.json", '{"class_accuracy": {"a": 1}, "confusion_matrix": [[Infinity]]}'),
        ("inference/a/classification.json", '{"class_accuracy": {"a": 1}, "confusion_matrix": [[1e308]]}'),
    ],
)
def test_files_of_nonsense_leave_a_page(tmp_path, file, content):
    folder = write_run(tmp_path / "run", [row(19)])
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(content)
    report.main([str(folder), "--no-isometry"])
    assert "not recorded" in " ".join(Parsed((folder / "report.html").read_text()).text)


def test_distances_are_in_mm_and_less_is_better(tmp_path):
    rows = [row(19, **{"segmentation/hd95_mean": 7.5}), row(39, **{"segmentation/hd95_mean": 8.5})]
    folder = write_run(tmp_path / "run", rows)
    report.main([str(folder), "--no-isometry"])
    page = Parsed((folder / "report.html").read_text())
    found = " ".join(" ".join(page.text).split())
    assert "95 % Hausdorff distance in mm, mean 8.5 39 7.5 19" in found  # last, best
    assert "Less is better: 95 % Hausdorff distance in mm, mean." in found
    chart = found[found.index("95 % Hausdorff distance of patients") :]
    assert "mm" in chart[:60]


def test_a_training_that_started_again_counts_from_there(tmp_path):
    rows = [row(19, a=1), row(39, a=2), row(59, b=3), row(39, a=5), {"iteration": 30, "a": 4}]
    metrics = reading.read_metrics(write_run(tmp_path / "run", rows))
    assert list(metrics["total_loss"]) == [19, 39]
    assert metrics["a"] == {19: 1, 30: 4, 39: 5} and metrics["b"] == {}


def test_thresholds_are_no_layers():
    series = {"isometry/a.conv_min": {0: 1.0, 9: 0.5}, "isometry/a.conv_error": {0: 0.0, 9: 0.5}}
    series |= {"isometry/a.srelu_min": {0: -1.0}, "ortho/a.conv": {0: 0.0, 5: 2.0}, "ortho/total": {0: 0.0}}
    layers = reading.layer_values(series)
    assert list(layers) == ["a.conv"]
    assert layers["a.conv"]["before"] | {"iteration": 0} == {
        "min": 1.0,
        "error": 0.0,
        "penalty": 0.0,
        "iteration": 0,
    }
    assert layers["a.conv"]["after"]["min"] == 0.5 and layers["a.conv"]["after"]["penalty"] == 2.0


def test_curves_are_interrupted_where_values_are_not_finite():
    chart = line_chart("t", {"a": {0: 1.0, 1: 2.0, 2: math.nan, 3: 1.0, 4: 2.0}}, "u")
    assert chart.svg.count('class="curve') == 2 and chart.svg.count('class="lost') == 1
    assert line_chart("t", {"a": {0: math.nan}}, "u") is None


def test_thinned_curves_keep_their_extremes():
    points = [(i, float(i % 7)) for i in range(5000)]
    points[1234], points[3210] = (1234, 99.0), (3210, math.nan)
    kept = thinned(points, 240)
    assert len(kept) <= 241 and points[1234] in kept and points[3210] in kept
    assert kept[0] == points[0] and kept[-1] == points[-1]


@pytest.mark.parametrize(
    "value, written", [(0, "0"), (1234.5, "1,234"), (-0.5, "−0.5"), (1e-5, "1e−5"), (math.nan, "NaN")]
)
def test_numbers_are_short(value, written):
    assert number(value) == written


def test_a_start_is_added_to_those_before(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["iso-d2 train", "--config-file", "a b.yaml"])
    for _ in range(2):
        train.record_run(tmp_path / "run.json", "cpu")
    first, second = json.loads((tmp_path / "run.json").read_text())
    assert first["command"] == second["command"] == "iso-d2 train --config-file 'a b.yaml'"
    assert {"date", "commit", "versions", "hardware"} <= set(second)
