import json

import pytest
import torch

from benchmarks.options import ROOT, Options
from benchmarks.report import Table, as_markdown, as_text, describe_run, judge, read_results, write_part

RATIO = {"median": 3.2, "q1": 3.0, "q3": 3.5}
TABLE = Table(
    "Title",
    [
        {"network": "other", "ms": {"median": 1234.5, "q1": 12.345, "q3": 0.12345}, "n": 7},
        {"network": "ours", "ms": 2.0, "n": 7, "ratio": RATIO, "target": judge(RATIO, at_least=3)},
    ],
)


@pytest.mark.parametrize(
    ("value", "target", "text", "met"),
    [
        (3.0, {"at_least": 3}, "at least 3x: met", True),
        (2.99, {"at_least": 3}, "at least 3x: missed", False),
        (0.85, {"at_most": 0.85}, "at most 0.85x: met", True),
        ({"median": 0.9, "q1": 0.1, "q3": 2.0}, {"at_most": 0.85}, "at most 0.85x: missed", False),
        (0.02, {"at_most": 0.03, "percent": True}, "at most 3%: met", True),
    ],
)
def test_target_beside_a_ratio(value, target, text, met):
    assert judge(value, **target) == {"text": text, "met": met}


def test_text_is_aligned_and_says_spread_and_target():
    assert [line.rstrip() for line in as_text(TABLE).splitlines()] == [
        "Title",
        "",
        "network    ms                    n    ratio                target",
        "---------  --------------------  ---  -------------------  ----------------",
        "other      1234 (12.3 to 0.123)  7",
        "ours       2.00                  7    3.20 (3.00 to 3.50)  at least 3x: met",
    ]


def context(**hardware):
    machine = {"cpu": "Some CPU", "cores": 2, "threads": 1, "gpu": None}
    return {
        "date": "2026-11-23T00:00:00+00:00",
        "commit": "0123456789",
        "dirty": True,
        "versions": {"torch": "9.9"},
        "hardware": {**machine, **hardware},
    }


def test_markdown_has_the_circumstances_and_each_table(tmp_path):
    file = tmp_path / "out.json"
    write_part(file, "step", [TABLE], context(), Options(), 61.4)
    lines = as_markdown(read_results(file)).splitlines()
    assert lines[:5] == [
        "### step",
        "",
        "Some CPU, 2 cores, 1 threads; float32; torch 9.9; commit 01234567, changed; 2026-11-23; 61 s.",
        "",
        "Title",
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[6:]]
    assert cells[0] == ["network", "ms", "n", "ratio", "target"]
    assert set("".join(cells[1])) == {"-"}
    assert cells[2:] == [
        ["other", "1234 (12.3 to 0.123)", "7", "", ""],
        ["ours", "2.00", "7", "3.20 (3.00 to 3.50)", "at least 3x: met"],
    ]


def test_gpu_is_named_where_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # for the options alone
    file = tmp_path / "out.json"
    for name, device in (("step", "cpu"), ("memory", "cuda")):
        write_part(file, name, [], context(gpu="Some GPU"), Options(device=device), 1.0)
    cpu, cuda = (line for line in as_markdown(read_results(file)).splitlines() if "commit" in line)
    assert cpu.startswith("Some CPU, 2 cores, 1 threads; float32")
    assert cuda.startswith("Some GPU; float32")


def test_results_of_the_first_version_are_still_read():
    results = read_results(ROOT / "results" / "benchmark_cpu.json")
    report = as_markdown(results)
    assert "AMD EPYC, 2 cores, 2 threads; float32; torch 2.14.1" in report
    assert "commit d556101a; 2026-11-24; 3 s." in report
    assert report.count("### ") == len(results["parts"]) and "at least 3x: met" in report


def test_a_part_takes_the_place_of_its_earlier_self_alone(tmp_path):
    file = tmp_path / "new" / "out.json"
    write_part(file, "step", [TABLE], {}, Options(), 1.0)
    write_part(file, "memory", [], {}, Options(), 2.0)
    write_part(file, "step", [TABLE, TABLE], {"date": "later"}, Options(depth=8), 3.0)
    document = json.loads(file.read_text())
    assert list(document["parts"]) == ["step", "memory"]
    assert len(document["parts"]["step"]["tables"]) == 2
    assert document["parts"]["step"]["context"] == {"date": "later"}
    assert document["parts"]["step"]["options"]["depth"] == 8
    assert document["parts"]["step"]["tables"][0]["rows"][1]["ratio"]["q3"] == 3.5
    assert [path.name for path in file.parent.iterdir()] == ["out.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "out.json"
    write_part(file, "step", [TABLE], {}, Options(), 1.0)
    before = file.read_text()
    with pytest.raises(TypeError):
        write_part(file, "step", [Table("bad", [{"value": object()}])], {}, Options(), 1.0)
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("content", ["no json", "[]", '{"parts": 3}', "{}"])
def test_another_file_is_not_overwritten(tmp_path, content):
    file = tmp_path / "out.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"out\.json holds no benchmark results"):
        write_part(file, "step", [], {}, Options(), 1.0)
    assert file.read_text() == content


def test_context_says_on_what_it_ran():
    described = describe_run(Options())
    assert set(described) == {"date", "commit", "dirty", "versions", "hardware"}
    assert described["hardware"]["threads"] == torch.get_num_threads()
