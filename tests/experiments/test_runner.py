import json
import os

import pytest
from detectron2.data import DatasetCatalog
from toy_runs import toy_repository, toy_run

from experiments import run as run_module
from experiments import runner as runner_module
from experiments.run import configuration
from experiments.runner import Runner
from experiments.training import Training
from iso_d2.files import write_atomically


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "POLL", 0.02)
    return toy_repository(tmp_path)


def carry_out(runs, **arguments):
    """A runner that has run, with what it said and the records that it asked for."""
    said, records = [], []

    def record(run, diverged):
        records.append((run.experiment.name, diverged))
        write_atomically(run.record_file, json.dumps({"configuration": configuration(run.config)}))

    runner = Runner(runs, say=said.append, record=record, **arguments)
    runner.good = runner.run()
    runner.said, runner.records = "\n".join(said), records
    return runner


def iterations(run):
    path = run.root / run.folder / "metrics.json"
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()] if path.exists() else []


def stop_in_the_middle(run, **arguments):
    """A runner whose time is over as soon as the run has made three iterations, where a "pause" waits."""
    return carry_out([run], budget=1.0, clock=lambda: 100.0 * (len(iterations(run)) >= 3), **arguments)


def go_on(run):
    (run.root / run.folder / "go").touch()
    return carry_out([run])


def commands(run):
    return json.loads((run.root / run.folder / "commands.json").read_text())


def test_runs_keep_their_order_and_a_failure_stops_no_other(root):
    runs = [toy_run(root, "a"), toy_run(root, "b", "fail"), toy_run(root, "c")]
    runner = carry_out(runs)
    assert not runner.good
    assert runner.records == [("a", None), ("c", None)]
    assert list(runner.failed) == ["b seed 1"]
    assert runner.failed["b seed 1"].startswith(
        "ValueError: no such thing (all of it: output/reproduce/cpu/b/"
    )
    assert iterations(runs[2]) == list(range(10))


def test_what_has_a_record_is_skipped_unless_forced(root):
    run = toy_run(root, "a")
    assert carry_out([run]).good
    again = carry_out([run])
    assert again.good and again.records == [] and "done already" in again.said
    forced = carry_out([run], force=True)
    assert forced.records == [("a", None)]
    assert iterations(run) == list(range(10))  # from the beginning, not after the old ones
    assert (root / "output/reproduce/cpu/a/seed1.before1/metrics.json").is_file()
    assert (root / "output/reproduce/cpu/a/seed1.before1/record.json").is_file()


def test_a_budget_stops_and_the_next_call_goes_on(root):
    run = toy_run(root, "a", "pause")
    first = stop_in_the_middle(run)
    assert first.good and first.records == [] and "time budget" in first.stopped
    assert "The same command goes on where it was" in first.said
    assert iterations(run) == [0, 1, 2]
    assert go_on(run).records == [("a", None)]
    assert iterations(run) == list(range(10))
    entries = [(entry["from_iteration"], entry["to_iteration"]) for entry in commands(run)]
    assert entries == [(0, 3), (3, 10)]


def test_a_forced_run_that_was_stopped_goes_on_without_force(root):
    run = toy_run(root, "a", "pause")
    write_atomically(run.record_file, "{}")
    stopped = stop_in_the_middle(run, force=True)
    assert "The same command without --force goes on" in stopped.said
    assert go_on(run).records == [("a", None)]
    assert [entry["from_iteration"] for entry in commands(run)] == [0, 3]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            '{"configuration": {"MODEL.META_ARCHITECTURE": "other"}}',
            "is of another configuration (MODEL.META_ARCHITECTURE other there, train here, and 1 more)",
        ),
        ('{"config": "configs/toy.yaml"}', "has an old format, which does not say its configuration"),
        ('{"config": "configs/t', "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_a_record_of_something_else_is_no_result(root, content, why):
    run = toy_run(root, "a")
    write_atomically(run.record_file, content)
    runner = carry_out([run])
    assert f"a-seed1.json {why}: it is run again" in runner.said
    assert runner.records == [("a", None)]
    assert (root / "output/reproduce/cpu/a/seed1.before1/record.json").read_text() == content


def test_two_do_not_train_in_one_folder(root):
    run = toy_run(root, "a")
    training = Training(run, 1)
    runner = carry_out([run, toy_run(root, "b")])
    assert runner.failed == {"a seed 1": "another process works in output/reproduce/cpu/a/seed1"}
    assert runner.records == [("b", None)]
    assert training() == ""
    assert carry_out([run]).records == [("a", None)]


def test_divergence_is_a_result(root):
    runner = carry_out([toy_run(root, "a", "diverge")])
    assert runner.good and runner.records == [("a", 7)]
    # a detector says it in other words and without the iteration
    assert carry_out([toy_run(root, "b", "explode")]).records == [("b", 10)]


def test_missing_data_and_what_a_scale_lacks_are_named(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "nowhere"))
    runs = [
        toy_run(root, "a", data=["cifar10_train"]),
        toy_run(root, "b", setting="left out, for time"),
        toy_run(root, "c", data=["lgg_train", "coco_pbc_train"]),
        toy_run(root, "d", data=["coco_pbc_train"]),
        toy_run(root, "e"),
    ]
    runner = carry_out(runs)
    assert runner.good and runner.records == [("e", None)]
    assert "python tools/prepare_cifar.py cifar10" in runner.skipped["a seed 1"]
    assert runner.skipped["b seed 1"] == "left out, for time"
    assert "lgg-mri-segmentation" in runner.skipped["c seed 1"]
    assert "make_coco_subset.py" in runner.skipped["d seed 1"]


def test_data_that_are_incomplete_or_damaged_are_named(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.setitem(run_module.IMAGES, "toy_train", 4)
    monkeypatch.setitem(DatasetCatalog.data, "toy_train", lambda: [{}] * 3)
    name = "coco/annotations/instances_person_bicycle_car_test55.json"
    write_atomically(root / name, '{"images": [')
    runs = [toy_run(root, "a", data=["coco_pbc_test"]), toy_run(root, "b", data=["toy_train"])]
    runner = carry_out([*runs, toy_run(root, "c")])
    assert "instances_person_bicycle_car_test55.json is not valid json" in runner.skipped["a seed 1"]
    assert "toy_train has 3 of its 4 images" in runner.skipped["b seed 1"]
    assert runner.records == [("c", None)]


def test_two_are_trained_side_by_side_and_share_the_cores(root, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    runs = [toy_run(root, "a", "meet b"), toy_run(root, "b", "meet a")]  # each waits for the other
    assert carry_out(runs, parallel=2).good
    assert commands(runs[0])[0]["threads"] == 2


def test_an_experiment_waits_for_the_one_that_it_starts_from(root, monkeypatch):
    written = []
    monkeypatch.setattr(runner_module, "write_backbone", lambda source, to: (written.append(to), to.touch()))
    start = toy_run(root, "start", table="pretraining")
    follower = toy_run(root, "follower", starts_from="start", weights=("none.pth",))
    runner = carry_out([follower, start], parallel=2)
    assert runner.records == [("start", None), ("follower", None)]
    assert written == [root / "output/reproduce/cpu/start/seed1/backbone.pth"]
    command = follower.commands()[0]
    assert command[command.index("MODEL.WEIGHTS") + 1] == "output/reproduce/cpu/start/seed1/backbone.pth"


def test_an_experiment_whose_start_failed_is_skipped(root):
    start = toy_run(root, "start", "fail", table="pretraining")
    follower = toy_run(root, "follower", starts_from="start", weights=("none.pth",))
    runner = carry_out([start, follower])
    assert "it starts from start, whose weights are not here" in runner.skipped["follower seed 1"]
    assert runner.records == []


def test_a_start_that_has_lost_its_weights_is_trained_again_if_it_is_needed(root, monkeypatch):
    monkeypatch.setattr(runner_module, "write_backbone", lambda source, to: to.touch())
    start = toy_run(root, "start", table="pretraining")
    follower = toy_run(root, "follower", starts_from="start", weights=("none.pth",))
    carry_out([start])
    (root / start.folder / "backbone.pth").unlink()
    assert carry_out([start]).records == []  # nobody needs them
    assert carry_out([start, follower]).records == [("start", None), ("follower", None)]
    (root / start.folder / "backbone.pth").unlink()
    assert carry_out([start, follower]).records == []


def test_a_failed_record_is_reported(root):
    def record(run, diverged):
        raise ValueError("nothing to record")

    runner = Runner([toy_run(root, "a")], say=lambda line: None, record=record)
    assert not runner.run()
    assert runner.failed == {"a seed 1": "no record: ValueError: nothing to record"}


def test_a_training_that_cannot_be_started_is_reported(root, monkeypatch):
    run = toy_run(root, "a")
    monkeypatch.setattr(run_module.sys, "executable", str(root / "no-python"))
    runner = carry_out([run])
    assert "FileNotFoundError" in runner.failed["a seed 1"]
