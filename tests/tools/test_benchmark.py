import json
import re

import pytest


@pytest.fixture
def benchmark(load_tool):
    return load_tool("benchmark")


def test_part_is_shown_written_and_reported(benchmark, tmp_path, capsys):
    file = tmp_path / "out.json"
    arguments = ["--depth", "8", "--size", "16", "16", "--batch", "1", "--output", str(file)]
    benchmark.main(["memory", *arguments])
    out = capsys.readouterr().out
    assert "commit: " in out and "R-ISONet-8" in out and str(file) in out
    assert list(json.loads(file.read_text())["parts"]) == ["memory"]
    benchmark.main(["report", "--output", str(file)])
    assert "| R-ISONet-8 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["machine", "penalty", "activation", "step", "memory", "inference", "data"]),
        (
            ["all", "--scaling"],
            ["machine", "penalty", "activation", "step", "memory", "inference", "data", "scaling"],
        ),
        (["--scaling"], ["scaling"]),
        (["memory", "penalty"], ["penalty", "memory"]),
    ],
)
def test_parts_of_a_command_line(benchmark, arguments, parts):
    args = benchmark.parse_args(arguments)
    assert benchmark.chosen_parts(args) == parts
    assert str(args.output) == "results/benchmark_cpu.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "parts are machine, penalty, .* got speed"),
        (["report", "memory"], "report goes alone"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--detector-batch", "-1"], "--detector-batch must be at least 1, got -1"),
    ],
)
def test_wrong_arguments(benchmark, arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_errors_are_sentences(benchmark, tmp_path):
    (tmp_path / "notes.json").write_text("mine")
    with pytest.raises(SystemExit, match=r"error: .*notes\.json holds no benchmark results"):
        benchmark.main(["memory", "--output", str(tmp_path / "notes.json")])
    with pytest.raises(SystemExit, match=r"error: there is no .*: run the benchmark first"):
        benchmark.main(["report", "--output", str(tmp_path / "none.json")])
