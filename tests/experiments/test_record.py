import dataclasses
import hashlib
import json

import pytest
from toy_boxes import write_boxes
from toy_records import toy_record
from toy_runs import toy_repository, toy_run

from experiments import record as record_module
from experiments.experiment import Metric, Setting
from experiments.record import (
    evaluations_of,
    merged_lines,
    read_records,
    scores,
    seconds_per_iteration,
    thin,
    value_of,
    write_record,
)
from iso_d2.data import register_coco_json

CIFAR = Setting("configs/toy.yaml", (), "a toy", evaluate="cifar10_train")
CONFIG = (
    "DATASETS:\n  TRAIN: ('cifar10_train',)\n  TEST: ('cifar10_test',)\nSOLVER:\n  MAX_ITER: 4\nVERSION: 2\n"
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose training has ended after one stop."""
    monkeypatch.setattr(record_module, "parameters_and_flops", lambda config: (123, 456))
    root = toy_repository(tmp_path)
    (root / "configs" / "toy.yaml").write_text(CONFIG)
    run = toy_run(root, "a", setting=CIFAR)
    folder = root / run.folder
    (folder / "inference" / "cifar10_train").mkdir(parents=True)
    lines = [
        {"iteration": 0, "total_loss": 3.0, "loss_cls": 3.0, "time": 0.5, "lr": 0.1},
        {"iteration": 1, "total_loss": 2.5, "loss_cls": 2.5, "time": 0.9, "lr": 0.1},
        # after the stop
        {"iteration": 1, "total_loss": 2.0, "loss_cls": 1.5, "loss_ortho": 0.5, "time": 0.6, "lr": 0.1},
        {"iteration": 3, "total_loss": 1.0, "loss_cls": 1.0, "time": 0.7, "lr": 0.1},
        {"iteration": 3, "classification/top1": 61.5, "classification/loss": 1.1},
        {"iteration": 3, "isometry/backbone.res2.0_gradient": 2.5},
    ]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 4, "tot')
    commands = [
        {"commit": "abc", "dirty": False, "threads": 1, "seconds": 2.5, "peak_memory_mb": 900},
        {"commit": "abd", "dirty": True, "threads": 1, "seconds": 1.5, "peak_memory_mb": 700},
    ]
    commands = [{**command, "evaluation_only": False} for command in commands]
    (folder / "commands.json").write_text(json.dumps(commands))
    evaluation = {"top1": 70.25, "loss": 0.9, "num_images": 50000, "class_accuracy": {"cat": 1.0}}
    (folder / "inference" / "cifar10_train" / "classification.json").write_text(json.dumps(evaluation))
    (folder / "model_final.pth").write_bytes(b"weights")
    (folder / "log.txt").write_text("x max_mem: 1200M\ny max_mem: 1500M\n")
    return run


def test_a_record_says_what_ran_and_what_came_out(run):
    write_record(run)
    record = json.loads(run.record_file.read_text())
    assert record["final"] == {
        "cifar10_test": {"top1": 61.5, "loss": 1.1},
        "cifar10_train": {"top1": 70.25, "loss": 0.9, "num_images": 50000},
    }
    assert record["evaluations"]["cifar10_test"] == [{"iteration": 3, "metrics": {"top1": 61.5, "loss": 1.1}}]
    assert [(point["iteration"], point["total_loss"]) for point in record["curve"]] == [
        (0, 3.0),
        (1, 2.0),
        (3, 1.0),
    ]
    assert record["isometry"] == [{"iteration": 3, "gradient_first": 2.5}]
    assert record["wall_seconds"] == 4.0 and record["starts"] == 2
    assert record["seconds_per_iteration"] == 0.6
    assert record["peak_memory_mb"] == 900 and record["peak_gpu_memory_mb"] == 1500
    assert record["commits"] == ["abc", "abd"] and record["uncommitted_changes"]
    assert (record["parameters"], record["flops"], record["seed"]) == (123, 456, 1)
    assert record["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert record["command"].startswith("python tools/train_net.py --resume --config-file configs/toy.yaml ")
    assert set(record["versions"]) >= {"python", "torch", "detectron2", "numpy", "albumentations"}
    assert record["hardware"]["threads"] == [1]
    assert record["configuration"]["SOLVER.MAX_ITER"] == "4" and run.outdated() == ""
    assert str(run.root) not in run.record_file.read_text()
    assert read_records(run.root, "cpu") == {"a": [record]} and read_records(run.root, "full") == {}


def test_a_diverged_run_has_no_results(run):
    record = write_record(run, diverged=3)
    assert record["diverged_at"] == 3 and record["final"] == {}


@pytest.fixture
def detection(run, tmp_path):
    """The same as the training of a detector that finds one of two objects; its results."""
    box = [0, 0, 10, 10]
    annotations, results = write_boxes(tmp_path, [1, 2], [(1, 1, box), (2, 1, box)], [(1, 1, box, 0.5)])
    register_coco_json("toy_boxes", annotations, tmp_path)
    (run.root / "configs" / "toy.yaml").write_text(CONFIG.replace("cifar10_test", "toy_boxes"))
    folder = run.root / run.folder
    with open(folder / "metrics.json", "a") as file:
        file.write('\n{"iteration": 3, "bbox/AP": 50.495, "bbox/AP50": 50.495}\n')
    (folder / "inference" / "toy_boxes").mkdir()
    return results.rename(folder / "inference" / "toy_boxes" / "coco_instances_results.json")


def test_a_record_has_the_ap_on_draws_of_the_test_images(run, detection):
    found = write_record(run)["resampled"]
    assert list(found) == ["toy_boxes"] and list(found["toy_boxes"]) == ["AP", "AP50"]
    # Both images, or one of them twice: 51 of the 101 recalls, all, none
    assert len(found["toy_boxes"]["AP"]) == 200 and set(found["toy_boxes"]["AP"]) == {0.0, 50.5, 100.0}
    assert json.loads(run.record_file.read_text())["resampled"] == found
    assert write_record(run, diverged=3)["resampled"] == {}


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("[{")])
def test_without_good_results_there_are_no_draws_but_a_record(run, detection, damage, log):
    damage(detection)
    record = write_record(run)
    assert record["resampled"] == {} and record["final"]["toy_boxes"]["AP50"] == 50.495
    assert "no AP on draws of the images of toy_boxes" in log.text and run.record_file.is_file()


def test_without_annotations_there_are_no_draws_but_a_record(run, detection, tmp_path, log):
    (tmp_path / "annotations.json").unlink()
    assert write_record(run)["resampled"] == {} and run.record_file.is_file()
    assert "annotations.json does not exist" in log.text


def test_without_metrics_there_is_no_record(run):
    (run.root / run.folder / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"metrics\.json is missing or empty"):
        write_record(run)
    assert not run.record_file.exists()


def test_evaluations_of_one_and_of_several_data_sets():
    one = [{"iteration": 9, "bbox/AP": 1.0, "bbox/AP-car": 2.0, "total_loss": 3.0, "ortho/total": 4.0}]
    assert evaluations_of(one, ["test"]) == {
        "test": [{"iteration": 9, "metrics": {"AP": 1.0, "AP-car": 2.0}}]
    }
    two = [{"iteration": 9, "test/segmentation/dice_loss": 1.0, "train/segmentation/dice_loss": 2.0}]
    assert evaluations_of(two, ["test", "train"]) == {
        "test": [{"iteration": 9, "metrics": {"dice_loss": 1.0}}],
        "train": [{"iteration": 9, "metrics": {"dice_loss": 2.0}}],
    }


def test_curves_are_thinned_but_keep_the_end():
    lines = [{"iteration": i, "total_loss": 1.0, "data_time": 5.0} for i in range(0, 2000, 20)]
    points = thin(lines)
    assert len(points) == 50 and points[-1] == {"iteration": 1980, "total_loss": 1.0}
    assert len(thin(lines[:60])) == 60


def test_lines_of_one_iteration_are_one():
    lines = [{"iteration": 2, "a": 1}, {"iteration": 1, "a": 5}, {"iteration": 2, "a": 3, "b": 2}]
    assert merged_lines(lines) == [{"iteration": 1, "a": 5}, {"iteration": 2, "a": 3, "b": 2}]
    assert seconds_per_iteration(lines) is None


def test_a_damaged_record_is_named_and_left_out(tmp_path, log):
    folder = tmp_path / "results" / "reproduction" / "cpu"
    folder.mkdir(parents=True)
    for name, text in (("a", "{"), ("b", "[]"), ("c", json.dumps(toy_record("c")))):
        (folder / f"{name}-seed1.json").write_text(text)
    assert list(read_records(tmp_path, "cpu")) == ["c"]
    assert "a-seed1.json is damaged" in log.text and "b-seed1.json is damaged" in log.text


def test_a_mean_over_the_last_evaluations():
    points = [{"iteration": i, "metrics": {"volume_dice_mean": v}} for i, v in enumerate((0, 60, 70, 74))]
    record = toy_record("signal-lgg-unet-bn", evaluations={"lgg_val": points})
    metric = Metric("Dice", "lgg_val", "volume_dice_mean", last=3)
    assert value_of(record, metric) == pytest.approx(68)
    assert value_of({**record, "diverged_at": 7}, metric) is None
    assert value_of({**record, "evaluations": {}}, metric) is None


def test_what_is_missing_counts_the_same_wherever_runs_are_compared():
    metric = Metric("top-1", "cifar10_test", "top1")
    found = [
        toy_record("a", final={"cifar10_test": {"top1": 40.0}}),
        toy_record("a", diverged=3),
        toy_record("a", final={"cifar10_test": {"top1": float("nan")}}),
        toy_record("a", final={"cifar10_test": {"loss": 1.0}}),
    ]
    assert scores(found, metric) == (40.0, 0.0, 0.0)
    assert scores(found, dataclasses.replace(metric, lower=True)) == (40.0, 1.0, 1.0)


def test_the_loss_without_the_penalty_is_taken_from_the_end_of_the_curve():
    assert value_of(toy_record("a"), Metric("loss")) == 1.5
    # Without the penalty the only loss is in the total alone.
    curve = [{"iteration": 390, "total_loss": 1.25, "lr": 0.1}]
    assert value_of(toy_record("a", curve=curve), Metric("loss")) == 1.25
    assert value_of(toy_record("a", curve=[]), Metric("loss")) is None
