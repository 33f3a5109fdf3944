import json

import pytest

from benchmarks.options import Options
from benchmarks.run import ALL, PARTS, run_benchmark, shares

TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


def test_time_is_divided_among_the_parts_asked_for():
    divided = shares(ALL, 600)
    assert sum(divided.values()) == pytest.approx(600)
    assert set(divided) == set(PARTS) - {"scaling"}
    assert shares(["memory"], 60) == {"memory": 60}


def test_parts_before_a_failing_one_are_written(monkeypatch, tmp_path):
    def fail(options, seconds):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(PARTS, "inference", (fail, 1))
    shown = []
    with pytest.raises(RuntimeError, match="out of memory"):
        run_benchmark(["memory", "inference"], TINY, 1, tmp_path / "out.json", shown.append)
    (part,) = json.loads((tmp_path / "out.json").read_text())["parts"].items()
    assert part[0] == "memory"
    assert part[1]["options"]["size"] == [16, 16]
    assert any("Saved for backward" in text for text in shown)
