"""The page of a run: parsed without a browser, and looked at in Chromium where there is one."""

import json
import math
import re
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from PIL import Image

from iso_d2.commands import report, train
from iso_d2.reporting import reading, write_report
from iso_d2.reporting.charts import line_chart, number, thinned

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "link", "img", "input", "br"}


def row(step, **values):
    return {"iteration": step, "total_loss": 2.0 / (step + 1), "lr": 0.1, "time": 0.5, **values}


def write_run(folder, rows, finished=True):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "config.yaml").write_text(
        "DATASETS: {TRAIN: [a_train], TEST: [a_test]}\nSOLVER: {MAX_ITER: 90}\n"
    )
    if finished:
        (folder / "model_final.pth").touch()
    return folder


def write_pictures(folder, panels, titles):
    folder.mkdir(parents=True)
    entries = []
    for i, title in enumerate(titles):
        pixels = np.full((60, 80 * len(panels), 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        entry = {"file": f"{i}.png", "title": title, "note": "n", "panels": panels, "error": i / 2}
        entries.append(entry)
    (folder / "pictures.json").write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """dict: name -> folder of a detector, classifier, UNet, killed and diverged run."""
    root = tmp_path_factory.mktemp("runs")
    layer = {
        f"isometry/backbone.res{i}.conv_{w}": v
        for i in (2, 3)
        for w, v in (("min", 0.5), ("max", 2), ("error", 1))
    }
    ap = {"bbox/AP": 30.0, "bbox/AP50": 60.0, f"bbox/AP-{HOSTILE}": 31.0, "bbox/AP-car": math.nan}
    rows = [
        row(0, **layer),
        row(19, loss_cls=1.0),
        row(39, **ap),
        row(59, **layer),
        row(79, **ap, **{"ortho/total": 1}),
    ]
    detector = write_run(root / "detector", rows)
    write_pictures(detector / "visualizations" / "a_test", ["truth", "prediction"], [HOSTILE, "b", "c"])
    started = {"command": "iso-d2 train --config-file a.yaml", "date": "2030-01-02", "commit": "abc123"}
    (detector / "run.json").write_text(json.dumps([{**started, "versions": {"torch": "9.9"}}]))
    classifier = write_run(root / "classifier", [row(19), row(39, **{"classification/top1": 50.0})])
    inference = classifier / "inference" / "a_test"
    inference.mkdir(parents=True)
    content = {"class_accuracy": {"cat": 75.0, HOSTILE: 0.0}, "confusion_matrix": [[3, 1], [2, 0]]}
    (inference / "classification.json").write_text(json.dumps(content))
    unet = write_run(root / "unet", [row(19), row(39, **{"segmentation/volume_dice_mean": 80.0})])
    inference = unet / "inference" / "a_test"
    inference.mkdir(parents=True)
    counts = {"num_slices": 5, "num_tumour_slices": 2, "true": 9, "predicted": 8, "intersection": 7}
    patients = [{"patient": f"p{dice}", "dice": dice, **counts} for dice in (60.0, 90.0, 70.0)]
    (inference / "segmentation.json").write_text(json.dumps({"patients": patients}))
    killed = write_run(root / "killed", [row(19), row(39)], finished=False)
    with (killed / "metrics.json").open("a") as file:
        file.write('{"iteration": 59, "total_l')
    diverged = write_run(root / "diverged", [row(19), row(39), row(59, loss_a=1.0)], finished=False)
    with (diverged / "metrics.json").open("a") as file:
        file.write('{"iteration": 79, "total_loss": NaN, "loss_a": Infinity, "lr": 0.1}\n')
    return {f.name: f for f in (detector, classifier, unet, killed, diverged)}


@pytest.fixture(scope="module")
def pages(runs):
    return {name: write_report(folder) for name, folder in runs.items()}


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


NAMES = ["detector", "classifier", "unet", "killed", "diverged"]


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
    "content, message", [(None, "has no metrics.json"), ("", "has no value"), ("[]\n1", "has no value")]
)
def test_a_folder_without_metrics_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        report.main([str(tmp_path)])


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


@pytest.fixture(scope="module")
def chromium():
    program = browser.find_chromium()
    if program is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(browser.NAMES)} is on the PATH")
    tab = browser.Browser(program)
    yield tab
    tab.close()


# Texts of drawings that stick out of them, by more than a pixel
CLIPPED = """[...document.querySelectorAll(".chart > svg text")].filter((text) => {
  const t = text.getBoundingClientRect(), s = text.ownerSVGElement.getBoundingClientRect();
  return t.left < s.left - 1 || t.right > s.right + 1 || t.top < s.top - 1 || t.bottom > s.bottom + 1;
}).map((text) => text.textContent)"""
# The least contrast of a colour with the surfaces it stands on, as WCAG defines it
CONTRAST = """(() => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const least = (names, grounds) => Math.min(...names.flatMap((a) => grounds.map((b) => ratio(a, b))));
  return [
    least(["--ink"], ["--paper", "--card", "--bar", "--shade"]),
    least(["--muted", "--accent", "--good", "--warn"], ["--paper", "--card"]),
    least(["--before", ...[0, 1, 2, 3, 4, 5, 6].map((i) => "--c" + i)], ["--card"]),
  ];
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_in_chromium(pages, chromium, name, width, dark):
    chromium.open(pages[name], width, dark)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.value("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert chromium.value("document.images.length") == (6 if name == "detector" else 0)
    assert chromium.value(CLIPPED) == []
    of_text, of_notes, of_curves = chromium.value(CONTRAST)
    assert of_text >= 4.5 and of_notes >= 4.5 and of_curves >= 3
    shade = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert (shade == "rgb(16, 19, 23)") == dark
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []
    assert chromium.faults == []


def test_what_the_script_adds(pages, chromium):
    chromium.open(pages["detector"], 1280)
    shown = "[...document.querySelectorAll('.picture:not([hidden]) b')].map((b) => b.textContent)"
    set_to = (
        "((s, v, e) => { const x = document.querySelector(s); x.value = v; x.dispatchEvent(new Event(e)); })"
    )
    chromium.value(f"{set_to}('select', '-1', 'change')")
    assert chromium.value(shown) == ["c", "b", HOSTILE]
    chromium.value(f"{set_to}('input', '0.6', 'input')")
    assert chromium.value(shown) == ["c"]
    chromium.value("document.querySelector('.zoom').click()")
    assert chromium.value("document.querySelector('dialog').open")
    chromium.open(pages["unet"], 1280)
    patients = "[...document.querySelectorAll('section table')].at(-1).querySelectorAll('tbody tr')"
    column = f"[...{patients}].map((row) => row.cells[1].textContent)"
    chromium.value(
        "[...document.querySelectorAll('th button')].find((b) => b.textContent === 'patient').click()"
    )
    assert chromium.value(column) == ["p60.0", "p70.0", "p90.0"]
    key = "new KeyboardEvent('keydown', {key: 'ArrowLeft'})"
    chromium.value(f"document.querySelector('#curves .chart > svg').dispatchEvent({key})")
    assert chromium.value("document.querySelector('#curves .at').textContent") == "at 19"
    assert chromium.value("document.querySelector('#curves .legend b').textContent") == "0.1"  # 2 / 20
    assert chromium.faults == []


def test_without_script_all_is_there(pages, chromium):
    chromium.open(pages["detector"], 390, script=False)
    assert (
        chromium.value("document.querySelectorAll('button, select, input').length") == 1
    )  # of the closed dialog
    assert chromium.value("document.querySelectorAll('.chart > svg .curve').length") > 2
    assert chromium.value("document.querySelector('dialog').open") is False
