import os
import subprocess

import pytest

from benchmarks.options import ROOT

PARTS = ["tests", "float32", "tf32", "bf16", "fp16", "profile", "reproduction"]
# In place of Python: records its call, and fails or hangs for the part that FAIL or HANG names
STUB = """#!/usr/bin/env bash
part=$(basename "$(readlink /proc/$$/fd/1)" .log)
echo "$part: $*" >> "$CALLS"
[ "$part" = "${HANG:-}" ] && sleep 60
[ "$part" = "${FAIL:-}" ] && exit 3
exit 0
"""


@pytest.fixture
def on_gpu(tmp_path):
    """A function that runs the script: its exit code, what it said and what it called, by part."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(*budget, **environment):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment |= {"OUT": str(tmp_path / "out"), "PYTHON": str(stub), "CALLS": str(calls)}
        command = ["bash", environment.pop("SCRIPT", ROOT / "benchmarks" / "on_gpu.sh"), *budget]
        ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        assert ended.stderr == ""
        said = dict(line.split(": ", 1) for line in ended.stdout.splitlines())
        called = dict(line.split(": ", 1) for line in calls.read_text().splitlines())
        return ended.returncode, said, called

    return run


def test_every_part_is_called_once_and_skipped_when_it_is_done(on_gpu, tmp_path):
    code, said, called = on_gpu()
    assert code == 0 and list(called) == PARTS and set(said.values()) == {"done"}
    for part in PARTS[1:6]:
        assert f"--device cuda --output {tmp_path}/out/{part}.json" in called[part]
    code, said, called = on_gpu()
    assert code == 0 and called == {} and set(said.values()) == {"done already"}


def test_a_part_that_fails_stops_no_other_and_is_repeated(on_gpu):
    code, said, called = on_gpu(FAIL="tf32")
    assert code == 1 and list(called) == PARTS
    assert said.pop("tf32").startswith("FAILED with code 3 ") and set(said.values()) == {"done"}
    code, _, called = on_gpu()
    assert code == 0 and list(called) == ["tf32"]


def test_when_the_time_is_over_the_rest_is_left_for_another_call(on_gpu):
    code, said, called = on_gpu("2", HANG="bf16")
    assert code == 2 and list(called) == PARTS[:4]
    assert said["bf16"] == "stopped, the time is over"
    assert {said[part] for part in PARTS[4:]} == {"no time left"}
    code, _, called = on_gpu()
    assert code == 0 and list(called) == PARTS[3:]


def test_a_part_that_hangs_does_not_eat_the_rest(on_gpu, tmp_path):
    script = (ROOT / "benchmarks" / "on_gpu.sh").read_text()
    assert "benchmark bf16 240 " in script
    copy = tmp_path / "benchmarks" / "on_gpu.sh"
    copy.parent.mkdir()
    copy.write_text(script.replace("benchmark bf16 240 ", "benchmark bf16 1 "))
    code, said, called = on_gpu(HANG="bf16", SCRIPT=str(copy))
    assert code == 1 and list(called) == PARTS
    assert said["bf16"].startswith("FAILED with code 124 ")


def test_every_part_is_a_command_that_there_is(on_gpu, load_tool):
    _, _, called = on_gpu()
    benchmark, reproduce = load_tool("benchmark"), load_tool("reproduce")
    for part in PARTS[1:6]:
        tool, *words = called[part].split()
        assert tool == "tools/benchmark.py"
        assert benchmark.chosen_parts(benchmark.parse_args(words))
    tool, *words = called["reproduction"].split()
    assert tool == "tools/reproduce.py"
    runs = reproduce.choose(reproduce.parse_args(words))
    assert not isinstance(runs[0].setting, str) and runs[0].device == "cuda"
