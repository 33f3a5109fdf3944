import subprocess

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
