import json
import os
import signal
import time
from pathlib import Path

import pytest
from toy_jobs import toy_job, toy_repository

from iso_d2.files import write_atomically
from iso_d2.reproduction import runner as runner_module
from iso_d2.reproduction.process import Process
from iso_d2.reproduction.runner import Runner


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "POLL", 0.02)
    return toy_repository(tmp_path)


def run(jobs, **arguments):
    """A runner that has run, with what it said and the records that it asked for."""
    said, records = [], []

    def record(job, diverged):
        records.append((job.arm.name, diverged))
        content = {"config": job.run.config, "options": list(job.run.options)}
        write_atomically(job.result_file, json.dumps(content))

    runner = Runner(jobs, say=said.append, record=record, **arguments)
    runner.good = runner.run()
    runner.said, runner.records = "\n".join(said), records
    return runner


def lines(job):
    path = job.root / job.folder / "metrics.json"
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def parts(job):
    return json.loads((job.root / job.folder / "parts.json").read_text())


def test_jobs_run_in_their_order_and_a_failure_stops_no_other(root):
    jobs = [toy_job(root, "a"), toy_job(root, "b", "fail"), toy_job(root, "c")]
    runner = run(jobs)
    assert not runner.good
    assert runner.records == [("a", None), ("c", None)]
    assert list(runner.failed) == ["b seed 1"]
    assert runner.failed["b seed 1"].startswith(
        "ValueError: no such thing (all of it: output/reproduce/small/b/"
    )
    assert lines(jobs[2]) == list(range(10))


def test_what_has_a_result_is_skipped_unless_forced(root):
    job = toy_job(root, "a")
    assert run([job]).good
    again = run([job])
    assert again.good and again.records == [] and "done already" in again.said
    forced = run([job], force=True)
    assert forced.records == [("a", None)]
    assert lines(job) == list(range(10))  # from the beginning, not after the old ones
    assert (root / "output/reproduce/small/a/seed1.before1/metrics.json").is_file()
    assert (root / "output/reproduce/small/a/seed1.before1/record.json").is_file()


def test_a_forced_run_that_was_stopped_goes_on_without_force(root):
    job, other = toy_job(root, "a", "slow"), toy_job(root, "b")
    run([job, other])
    stopped = run([job, other], force=True, budget=1.2)
    done = len(lines(job))
    assert 0 < done < 10 and "The same command without --force goes on" in stopped.said
    assert run([job, other]).records == [("a", None), ("b", None)]
    assert [part["from_iteration"] for part in parts(job)] == [0, done]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"config": "configs/toy.yaml", "options": ["DO", "other"]}', "is of another configuration"),
        ('{"config": "configs/t', "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_a_record_of_something_else_is_no_result(root, content, why):
    job = toy_job(root, "a")
    write_atomically(job.result_file, content)
    runner = run([job])
    assert f"a-seed1.json {why}: it is run again" in runner.said
    assert runner.records == [("a", None)]
    assert (root / "output/reproduce/small/a/seed1.before1/record.json").read_text() == content


def test_two_runners_do_not_train_in_one_folder(root):
    job = toy_job(root, "a", "slow")
    process = Process(job, 1)
    try:
        runner = run([job, toy_job(root, "b")])
    finally:
        process.signal(signal.SIGKILL)
        process.wait()
    assert runner.failed == {"a seed 1": "another process works in output/reproduce/small/a/seed1"}
    assert runner.records == [("b", None)]
    process.close()
    assert run([job]).records == [("a", None)]


def test_damaged_accounts_stop_nobody(root):
    job = toy_job(root, "a")
    write_atomically(root / job.folder / "parts.json", '[{"seconds": 1')
    assert run([job, toy_job(root, "b")]).records == [("a", None), ("b", None)]
    assert len(parts(job)) == 1


def test_a_budget_stops_and_the_next_call_goes_on(root):
    job = toy_job(root, "a", "slow")
    first = run([job, toy_job(root, "b")], budget=1.2)
    assert first.good and first.records == [] and "time budget" in first.stopped
    assert "goes on where it was" in first.said
    done = len(lines(job))
    assert 0 < done < 10
    second = run([job])
    assert second.records == [("a", None)]
    assert lines(job) == list(range(10))
    assert [(p["from_iteration"], p["to_iteration"]) for p in parts(job)] == [(0, done), (done, 10)]


def test_a_stop_ends_the_processes_of_a_training_too(root):
    job = toy_job(root, "a", "hang")
    begin = time.monotonic()
    run([job], budget=1.5)
    assert time.monotonic() - begin < runner_module.GRACE
    child = int((root / job.folder / "child").read_text())
    status = Path(f"/proc/{child}/status")
    # Nobody may have waited for it yet; then it is a zombie.
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_divergence_is_a_result(root):
    runner = run([toy_job(root, "a", "diverge")])
    assert runner.good and runner.records == [("a", 7)]
    # a detector says it in other words and without the iteration
    assert run([toy_job(root, "b", "explode")]).records == [("b", 10)]


def test_missing_data_and_arms_that_a_scale_lacks_are_named(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "nowhere"))
    jobs = [
        toy_job(root, "a", needs=("cifar10",)),
        toy_job(root, "b", small="left out, for time"),
        toy_job(root, "c", needs=("lgg", "coco")),
        toy_job(root, "d"),
    ]
    runner = run(jobs)
    assert runner.good and runner.records == [("d", None)]
    assert "python tools/prepare_cifar.py cifar10" in runner.skipped["a seed 1"]
    assert runner.skipped["b seed 1"] == "left out, for time"
    assert "0 of 110 patients" in runner.skipped["c seed 1"]
    assert "make_coco_subset.py" in runner.skipped["c seed 1"]


def test_the_training_set_is_evaluated_after_the_training(root):
    job = toy_job(root, "a", evaluate="toy_train")
    assert run([job]).good
    assert (root / job.folder / "evaluated").read_text() == "('toy_train',)"
    assert [part["evaluation_only"] for part in parts(job)] == [False, True]


def test_two_side_by_side_take_less_time_and_share_the_cores(root, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    jobs = [toy_job(root, name, "slow") for name in "ab"]
    begin = time.monotonic()
    assert run(jobs, parallel=2).good
    assert time.monotonic() - begin < 2 * 10 * 0.3
    assert parts(jobs[0])[0]["threads"] == 2


def test_an_arm_waits_for_the_one_that_it_starts_from(root, monkeypatch):
    written = []
    monkeypatch.setattr(runner_module, "write_backbone", lambda source, to: (written.append(to), to.touch()))
    start = toy_job(root, "start", "slow", table="pretraining")
    follower = toy_job(root, "follower", starts_from="start", weights="none.pth")
    runner = run([follower, start], parallel=2)
    assert runner.records == [("start", None), ("follower", None)]
    assert written == [root / "output/reproduce/small/start/seed1/backbone.pth"]
    command = follower.commands()[0]
    assert command[command.index("MODEL.WEIGHTS") + 1] == "output/reproduce/small/start/seed1/backbone.pth"


def test_an_arm_whose_start_failed_is_skipped(root):
    start = toy_job(root, "start", "fail", table="pretraining")
    follower = toy_job(root, "follower", starts_from="start", weights="none.pth")
    runner = run([start, follower])
    assert "it starts from start, whose weights are not here" in runner.skipped["follower seed 1"]
    assert runner.records == []


def test_a_start_that_has_lost_its_weights_is_trained_again_if_it_is_needed(root, monkeypatch):
    monkeypatch.setattr(runner_module, "write_backbone", lambda source, to: to.touch())
    start = toy_job(root, "start", table="pretraining")
    follower = toy_job(root, "follower", starts_from="start", weights="none.pth")
    run([start])
    (root / start.folder / "backbone.pth").unlink()
    assert run([start]).records == []  # nobody needs them
    assert run([start, follower]).records == [("start", None), ("follower", None)]
    (root / start.folder / "backbone.pth").unlink()
    assert run([start, follower]).records == []


def test_own_weights_count_only_with_those_of_the_counterpart(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    job = toy_job(root, "a", starts_from="start", weights="a.pth", counterpart_weights="b.pth")
    (root / "a.pth").touch()
    assert job.start == "output/reproduce/small/start/seed1/backbone.pth"
    (root / "b.pth").touch()
    assert job.start == str(root / "a.pth")


def test_a_damaged_data_set_is_named(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    for split in ("train1000", "test55"):
        name = f"coco/annotations/instances_person_bicycle_car_{split}.json"
        write_atomically(root / name, '{"images": [')
    runner = run([toy_job(root, "a", needs=("coco",)), toy_job(root, "b")])
    assert "instances_person_bicycle_car_train1000.json" in runner.skipped["a seed 1"]
    assert runner.records == [("b", None)]


def test_old_checkpoints_go_but_for_two(root):
    job = toy_job(root, "a", "slow")
    folder = root / job.folder
    folder.mkdir(parents=True)
    for number in (9, 19, 29, 39):
        (folder / f"model_{number:07d}.pth").touch()
    # 39 may be half written: it is not the last one yet
    (folder / "last_checkpoint").write_text("model_0000029.pth")
    run([job], budget=0.5)
    left = sorted(path.name for path in folder.glob("model_*"))
    assert left == ["model_0000019.pth", "model_0000029.pth", "model_0000039.pth"]


def test_a_failed_record_is_reported(root):
    def record(job, diverged):
        raise ValueError("nothing to record")

    runner = Runner([toy_job(root, "a")], say=lambda line: None, record=record)
    assert not runner.run()
    assert runner.failed == {"a seed 1": "no record: ValueError: nothing to record"}


def test_the_command_is_that_of_train_net(root):
    job = toy_job(root, "a")
    assert job.commands()[0][1:] == [
        "tools/train_net.py",
        "--resume",
        "--config-file",
        "configs/toy.yaml",
        *("OUTPUT_DIR", "output/reproduce/small/a/seed1", "SEED", "1", "DO", "train"),
    ]
