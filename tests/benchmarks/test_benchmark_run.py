import json

import pytest
import torch

from benchmarks.options import Options
from benchmarks.report import Table
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
    on_request = {"scaling", "profile", "compile", "launches", "appetite", "many_gpus"}
    assert set(given) == set(PARTS) - on_request
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


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("float32", "float32"), ("tf32", "tf32"), ("bfloat16", "bf16"), ("float16", "fp16")],
)
def test_every_row_says_its_precision_and_has_it(monkeypatch, tmp_path, dtype, precision):
    def part(options, seconds):
        used = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        return [Table("a", [{"used": used}, {"used": used, "precision": "its own"}])]

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # for the options alone
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr("benchmarks.run.describe_run", lambda options: {})
    monkeypatch.setitem(PARTS, "memory", (part, 1))
    run_benchmark(["memory"], Options(device="cuda", dtype=dtype), 1, tmp_path / "out.json")
    (table,) = json.loads((tmp_path / "out.json").read_text())["parts"]["memory"]["tables"]
    assert [row["precision"] for row in table["rows"]] == [precision, "its own"]
    assert table["rows"][0]["used"] == [dtype == "tf32"] * 2
