import json

import pytest

from benchmarks.options import Options
from benchmarks.run import ALL, PARTS, run_benchmark

TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


def test_time_is_divided_among_the_parts_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("gc.collect", lambda: None)  # it is slow after other tests
    given = {}
    for part, (_, weight) in PARTS.items():
        monkeypatch.setitem(
            PARTS, part, (lambda _, share, part=part: given.setdefault(part, share) and [], weight)
        )
    run_benchmark(ALL, TINY, 600, tmp_path / "out.json")
    assert sum(given.values()) == pytest.approx(600)
    assert set(given) == set(PARTS) - {"scaling"}
    given.clear()
    run_benchmark(["memory"], TINY, 60, tmp_path / "out.json")
    assert given == {"memory": 60}


def test_parts_before_a_failing_one_are_shown_and_written(monkeypatch, tmp_path, capsys):
    def fail(options, seconds):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(PARTS, "inference", (fail, 1))
    with pytest.raises(RuntimeError, match="out of memory"):
        run_benchmark(["memory", "inference"], TINY, 1, tmp_path / "out.json")
    (part,) = json.loads((tmp_path / "out.json").read_text())["parts"].items()
    assert part[0] == "memory"
    assert part[1]["options"]["size"] == [16, 16]
    assert "Saved for backward" in capsys.readouterr().out
