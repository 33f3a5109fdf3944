from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from toy_runs import toy_repository, toy_run

from experiments.experiment import BY_NAME, EXPERIMENTS, PRETRAINING, SCALES, TABLES, Setting
from experiments.run import IMAGES, Run, command_text, configuration, missing
from iso_d2.data.lgg import PATIENTS
from iso_d2.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[2]
RUNS = [
    Run(experiment, scale, 1, ROOT)
    for experiment in EXPERIMENTS
    for scale in SCALES
    if isinstance(experiment.settings[scale], Setting)
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.scale}-{run.experiment.name}")
def test_every_experiment_has_a_config_that_can_be_resumed(run):
    cfg = run.config
    assert cfg.SEED == 1 and cfg.OUTPUT_DIR.startswith(f"output/reproduce/{run.scale}/{run.experiment.name}")
    assert 0 < run.iterations < 100_000 and cfg.SOLVER.CHECKPOINT_PERIOD <= 2000
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *filter(None, [run.setting.evaluate])}
    assert names <= set(DatasetCatalog.list()) and run.train_set in IMAGES
    tables = [table for table in TABLES if table.name == run.experiment.table]
    measured = {
        metric.dataset.replace("{fold}", str(run.seed - 1)) for table in tables for metric in table.metrics
    }
    assert run.experiment.table == PRETRAINING or measured & names


@pytest.mark.parametrize(
    "table", [table for table in TABLES if table.name != PRETRAINING], ids=lambda t: t.name
)
@pytest.mark.parametrize("scale", SCALES)
def test_experiments_of_a_table_have_the_same_schedule(table, scale):
    schedules = set()
    for run in RUNS:
        if (run.experiment.table, run.scale) == (table.name, scale):
            solver = run.config.SOLVER
            batch, rate = solver.IMS_PER_BATCH, solver.BASE_LR
            steps = [run.iterations, solver.WARMUP_ITERS, *solver.STEPS, *solver.EPOCH_STEPS]
            if table.by_batch:  # batches differ: the same at the same number of images
                schedules.add(tuple(number * batch for number in steps))
            else:  # on a CPU each network has its own best rate
                schedules.add((batch, None if scale == "cpu" else rate, *steps))
    assert len(schedules) <= 1


def test_iterations_follow_from_the_images():
    # 100 epochs of 50,000 images in batches of 128; 50 epochs of 3,340 slices in batches of 20
    assert Run(BY_NAME["cifar10-resnet-bn"], "full", 1, ROOT).iterations == 39062
    assert Run(BY_NAME["mri-image-unet-bn"], "full", 1, ROOT).iterations == 8350
    assert Run(BY_NAME["coco-batch1-risonet-fpn"], "full", 1, ROOT).iterations == 12_000


def test_the_slices_of_a_split_are_as_many_as_the_patients_have():
    slices = sum(patient.slices for patient in PATIENTS.values())
    validation = sum(patient.slices for patient in PATIENTS.values() if patient.in_val)
    assert IMAGES["lgg_train"] == slices - validation
    assert IMAGES["lgg_image_train"] == slices - sum(len(p.val_slices) for p in PATIENTS.values())


def test_the_configuration_is_what_is_set_otherwise_than_by_default(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("MODEL:\n  WEIGHTS: ''\nSOLVER:\n  STEPS: (3, 4)\n  MAX_ITER: 40000\nVERSION: 2\n")
    first = configuration(load_config(path, ["OUTPUT_DIR", "there", "SEED", "7", "SOLVER.BASE_LR", "1e-2"]))
    assert first == {"SOLVER.STEPS": "[3, 4]", "SOLVER.BASE_LR": "0.01"}
    # another file and other words for the same
    assert first == configuration(load_config("", ["SOLVER.BASE_LR", "0.01", "SOLVER.STEPS", "[3,4]"]))


def test_what_has_changed_since_a_record_was_made_is_named(tmp_path):
    run = toy_run(toy_repository(tmp_path), "a")
    run.record_file.parent.mkdir(parents=True)
    run.record_file.write_text('{"configuration": {}}')
    assert run.outdated() == (
        "a-seed1.json is of another configuration "
        "(MODEL.META_ARCHITECTURE by default there, train here, and 1 more)"
    )


def test_a_record_of_an_old_format_comes_with_what_to_do(tmp_path):
    run = toy_run(toy_repository(tmp_path), "a")
    run.record_file.parent.mkdir(parents=True)
    run.record_file.write_text('{"config": "configs/toy.yaml"}')
    assert run.state() == (
        "a-seed1.json has an old format, which does not say its configuration: run it again, "
        "which sets that file aside"
    )


def test_own_weights_count_only_with_those_of_the_counterpart(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    run = toy_run(tmp_path, "a", starts_from="start", weights=("a.pth", "b.pth"))
    (tmp_path / "a.pth").touch()
    assert run.start == "output/reproduce/cpu/start/seed1/backbone.pth"
    (tmp_path / "b.pth").touch()
    assert run.start == str(tmp_path / "a.pth")


def test_the_command_is_that_of_train_net(tmp_path):
    run = toy_run(tmp_path, "a")
    assert run.commands()[0][1:] == [
        *("tools/train_net.py", "--resume", "--config-file", "configs/toy.yaml"),
        *("OUTPUT_DIR", "output/reproduce/cpu/a/seed1", "SEED", "1", "MODEL.DEVICE", "cpu"),
        *("MODEL.META_ARCHITECTURE", "train", "DATASETS.TRAIN", "()"),
    ]
    on_gpu = Run(run.experiment, "cpu", 1, tmp_path, "cuda").options()
    assert on_gpu[on_gpu.index("MODEL.DEVICE") + 1] == "cuda"
    assert "MODEL.DEVICE" not in Run(BY_NAME["cifar10-resnet-bn"], "full", 1, ROOT).options()
    assert command_text(["/usr/bin/python3", "a.py", "KEY", "", "('x',)"]) == 'python a.py KEY "" "(\'x\',)"'


def test_the_state_of_a_run_loads_no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr("experiments.run.DatasetCatalog.get", lambda name: pytest.fail(f"{name} is loaded"))
    for folder in ("cifar-10-batches-py", "lgg-mri-segmentation/kaggle_3m", "coco/val2017"):
        (tmp_path / folder).mkdir(parents=True)
    names = ["cifar10_test", "lgg_image_val", "coco_pbc_train", "shapes_train"]
    assert toy_run(toy_repository(tmp_path), "a", data=names).state() == "to be run"
    monkeypatch.undo()
    # without its folder the data set itself says what to do
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert "tools/prepare_cifar.py cifar100" in missing("cifar100_train", tmp_path)
    assert "not registered" in missing("nothing_train", tmp_path)


def test_incomplete_data_come_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.run.DatasetCatalog.get", lambda name: [0] * 303)
    reason = missing("lgg_train", tmp_path)
    assert reason.startswith(
        f"lgg_train has 303 of its 3,347 images in {tmp_path}: get the whole set, https://"
    )
    assert missing("coco_pbc_train", tmp_path).endswith("run tools/make_coco_subset.py again")
    assert missing("coco_pbc_chips_train", tmp_path).startswith("coco_pbc_train has 303 of its 1,000 images")
