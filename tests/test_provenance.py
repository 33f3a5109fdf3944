import os
import subprocess

import pytest
import torch

from iso_d2.provenance import git_state, hardware, versions


def test_the_state_of_a_checkout(tmp_path):
    assert git_state(tmp_path / "nowhere") == {"commit": "unknown", "dirty": False}
    (tmp_path / "a.py").write_text("a = 1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "a.py"], [*identity, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    state = git_state(tmp_path)
    assert len(state["commit"]) >= 7 and not state["dirty"]
    (tmp_path / "results.md").write_text("new files are no changes")
    assert not git_state(tmp_path)["dirty"]
    (tmp_path / "a.py").write_text("a = 2\n")
    assert git_state(tmp_path) == {**state, "dirty": True}


def test_a_measurement_says_on_what_it_ran():
    assert {"python", "torch", "torchvision", "numpy", "detectron2"} <= set(versions())
    described = hardware("cpu", 2)
    assert described["cpu"] and described["cores"] >= 1
    assert (described["threads"], described["gpu"]) == (2, None)


def test_a_gpu_is_named_without_using_it(monkeypatch, tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\ntest "$1" = --id=3 && echo "Some GPU"\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: pytest.fail("opens a context"))
    assert hardware("cuda", 1)["gpu"] == "Some GPU"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    assert hardware("cuda", 1)["gpu"] == "unknown GPU"
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "its name")
    assert hardware("cuda", 1)["gpu"] == "its name"


@pytest.mark.parametrize(("precision", "rounded"), [("tf32", True), ("ieee", False)])
def test_tf32_is_told_in_a_process_that_has_set_it_by_torchs_present_interface(precision, rounded):
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        assert hardware("cuda", 1)["tf32"]["matmul"] is rounded
    finally:
        matmul.fp32_precision = before
