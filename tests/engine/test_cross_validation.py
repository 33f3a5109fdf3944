import csv
import json
import os
import re
import shutil
import signal
import statistics

import kills
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from engine_toys import At
from patient_toys import UNET, register_patients
from PIL import Image

from iso_d2.commands import folds as command
from iso_d2.commands import predict
from iso_d2.data.catalog import register
from iso_d2.engine import Trainer
from iso_d2.engine.checkpoint import IsoCheckpointer
from iso_d2.engine.cross_validation import CrossValidation
from iso_d2.engine.setup import load_config

CONFIG = "quick/isounet_phantom"
PATIENTS = "ABCDE"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    register_patients("folds_train", tmp_path_factory.mktemp("folds"), PATIENTS)
    register_patients("folds_test", tmp_path_factory.mktemp("folds"), "XY")
    # of whom fold 1 of 2 has none
    register_patients("folds_uneven", tmp_path_factory.mktemp("folds"), "ACE", "ABCDE")
    register_patients("folds_val", tmp_path_factory.mktemp("folds"), "EZ")
    register("folds_nameless", lambda: [{"file_name": "x.png"}], "medical_segmentation")


def opts(folder, *more):
    datasets = ["DATASETS.TRAIN", "('folds_train',)", "DATASETS.TEST", "('folds_test',)"]
    in_steps = ["SOLVER.EPOCHS", "0", "SOLVER.EPOCH_STEPS", "()"]
    return [*UNET, *in_steps, *datasets, "OUTPUT_DIR", str(folder), *more]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The output of two folds that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    CrossValidation(CONFIG, opts(folder), folds=2).run()
    return folder


def read(folder):
    return json.loads((folder / "folds.json").read_text())


def network(folder):
    """The config of a fold and its network, in inference mode."""
    cfg = load_config(folder / "config.yaml")
    model = Trainer.build_model(cfg).eval()
    IsoCheckpointer(model).load(str(folder / "model_final.pth"))
    return cfg, model


@torch.no_grad()
def volume_dice(predict, patient, dataset="folds_train"):
    """Dice in percent of a patient's slices, of which `predict` gives the probabilities (1, H, W)."""
    both = either = 0
    for record in DatasetCatalog.get(dataset):
        if record["patient"] == patient:
            truth = torch.from_numpy(record["sem_seg_array"]) > 0
            found = predict(torch.from_numpy(record["image_array"]))[0] >= 0.5
            both, either = both + (found & truth).sum().item(), either + (found.sum() + truth.sum()).item()
    return 200 * both / either


def test_every_patient_is_measured_by_a_network_that_never_saw_it(whole):
    summary = read(whole)
    assert [p["patient"] for p in summary["patients"]] == list(PATIENTS)
    assert [p["fold"] for p in summary["patients"]] == [0, 1, 0, 1, 0]
    networks = [network(whole / f"fold_{fold}") for fold in (0, 1)]
    for entry in summary["patients"]:
        cfg, model = networks[entry["fold"]]
        seen = {record["patient"] for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])}
        assert entry["patient"] not in seen and len(seen) == (2, 3)[entry["fold"]]
        expected = volume_dice(lambda image, m=model: m([{"image": image}])[0]["sem_seg"], entry["patient"])
        assert entry["dice"] == pytest.approx(expected)
    dice = [entry["dice"] for entry in summary["patients"]]
    assert summary["volume_dice"]["mean"] == pytest.approx(statistics.mean(dice))
    low, high = summary["volume_dice"]["interval"]
    assert min(dice) <= low < statistics.mean(dice) < high <= max(dice)
    assert summary["n"] == 5 and [fold["n"] for fold in summary["by_fold"]] == [3, 2]
    with open(whole / "patients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["patient"], float(row["dice"])) for row in rows] == list(zip(PATIENTS, dice, strict=True))


def test_the_ensemble_is_measured_on_others_and_predicts(whole, tmp_path, capsys):
    networks = [network(whole / f"fold_{fold}")[1] for fold in (0, 1)]

    def mean(image):
        return sum(model([{"image": image}])[0]["sem_seg"] for model in networks) / 2

    found = read(whole)["ensemble"]
    assert found["data"] == ["folds_test"] and [p["patient"] for p in found["patients"]] == ["X", "Y"]
    expected = [volume_dice(mean, patient, "folds_test") for patient in "XY"]
    assert [p["dice"] for p in found["patients"]] == pytest.approx(expected)

    record = next(r for r in DatasetCatalog.get("folds_test") if r["image_id"] == "Y_2")
    shutil.copy(record["file_name"], tmp_path / "y.png")
    arguments = ["--folds", str(whole), "--input", str(tmp_path / "y.png"), "--output", str(tmp_path / "out")]
    # cropped to what is bright, which is the whole of these
    predict.main([*arguments, "--opts", "DATASETS.TEST", "()", "TEST.MIRROR_AXES", "['width']"])
    image = torch.from_numpy(record["image_array"])
    with torch.no_grad():
        mirrored = (mean(image) + mean(image.flip(-1)).flip(-1)) / 2
    mask = np.asarray(Image.open(tmp_path / "out" / "0000_y_mask.png")) > 0
    assert np.array_equal(mask, mirrored[0].numpy() >= 0.5) and mask.any() and not mask.all()
    (whole / "fold_1").rename(whole / "elsewhere")
    with pytest.raises(SystemExit, match=r"fold_1/model_final.pth is missing: .* finish all 2 folds"):
        predict.main(arguments)
    (whole / "elsewhere").rename(whole / "fold_1")
    with pytest.raises(SystemExit, match="is no OUTPUT_DIR of `iso-d2 folds`"):
        predict.main(["--folds", str(tmp_path), *arguments[2:]])


def test_it_goes_on_where_it_stopped(whole, tmp_path, monkeypatch, usual_handlers, capsys):
    build_hooks = Trainer.build_hooks

    def with_signal(trainer):
        is_second = trainer.cfg.OUTPUT_DIR.endswith("fold_1")
        stop = [At(1, lambda: os.kill(os.getpid(), signal.SIGTERM))] if is_second else []
        return stop + build_hooks(trainer)

    arguments = ["--config-file", CONFIG, "--folds", "2", *opts(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "build_hooks", with_signal)
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "folds.json").exists()
    first = os.stat(tmp_path / "fold_0" / "model_final.pth").st_mtime_ns
    command.main(arguments)
    said = capsys.readouterr().out
    assert re.search(r"volume Dice: mean [\d.]+ % \(95 % bootstrap .*, 5 patients out of fold", said)
    assert re.search(r"volume Dice: .*, 2 patients of folds_test, by the folds' ensemble", said)
    assert os.stat(tmp_path / "fold_0" / "model_final.pth").st_mtime_ns == first
    for fold in ("fold_0", "fold_1"):
        assert kills.digest(tmp_path / fold) == kills.digest(whole / fold)
    assert (tmp_path / "patients.csv").read_text() == (whole / "patients.csv").read_text()


def test_what_is_done_is_not_done_again(whole, monkeypatch, tmp_path):
    before = read(whole)
    whole = shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.setattr(Trainer, "train", lambda *_: pytest.fail("trained again"))
    evaluated = []
    evaluate = Trainer.evaluate.__func__

    def counted(cls, cfg, resume):
        evaluated.append(os.path.basename(cfg.OUTPUT_DIR))
        return evaluate(cls, cfg, resume)

    monkeypatch.setattr(Trainer, "evaluate", classmethod(counted))
    assert CrossValidation(CONFIG, opts(whole), folds=2).run()["patients"] == before["patients"]
    assert evaluated == []
    # everything is foreground: 2 |T| / (|T| + |all|) of 3 slices, of which 2 have 36 pixels
    everything = opts(whole, "TEST.SEGMENTATION.THRESHOLD", "1e-9")
    dice = [p["dice"] for p in CrossValidation(CONFIG, everything, folds=2).run()["patients"]]
    assert evaluated == ["fold_0", "fold_1"]
    assert dice == pytest.approx([200 * 72 / (72 + 3 * 256)] * 5)


def test_a_fold_that_stopped_early_is_done(data, tmp_path, monkeypatch):
    best = ["TEST.BEST", "['segmentation/volume_dice_mean', 'max']", "TEST.EVAL_PERIOD", "1"]
    # so small a rate that no evaluation is better than the first; the third of 4 steps is the last
    arguments = opts(tmp_path, *best, "TEST.PATIENCE", "2", "SOLVER.BASE_LR", "1e-9")
    before = CrossValidation(CONFIG, arguments, folds=2).run()
    state = torch.load(tmp_path / "fold_0" / "model_final.pth", weights_only=True)
    assert state["iteration"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda *_: pytest.fail("trained again"))
        assert CrossValidation(CONFIG, arguments, folds=2).run() == before
    CrossValidation(CONFIG, [*arguments, "TEST.PATIENCE", "3"], folds=2).run()
    state = torch.load(tmp_path / "fold_0" / "model_final.pth", weights_only=True)
    assert state["iteration"] == 3


def test_a_folder_of_another_number_of_folds_is_refused_at_once(data, tmp_path):
    CrossValidation(CONFIG, opts(tmp_path), folds=3, only=[1]).run()
    with pytest.raises(FileExistsError, match=r"fold_1 holds .*fold1of3_val.* -> .*fold1of2_val"):
        CrossValidation(CONFIG, opts(tmp_path), folds=2, only=[0])


def test_some_folds_alone_leave_the_rest(data, tmp_path, capsys):
    command.main(["--config-file", CONFIG, "--folds", "2", "--fold", "1", *opts(tmp_path)])
    assert "Other folds are not done with these settings" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold_1"]


@pytest.mark.parametrize(
    ("more", "folds", "only", "message"),
    [
        ([], 2, [2], "there is no fold 2: 2 folds are 0 to 1"),
        ([], 6, [], "folds_train has 5 patients: the number of folds must be from 2 to 5, got 6"),
        ([], 1, [], "must be from 2 to 5, got 1"),
        (["DATASETS.TRAIN", "('folds_uneven',)"], 2, [], "fold 1 of 2 would have none of the 3 patients"),
        (["DATASETS.LGG_SPLIT", "fold"], 2, [], "leave it out to divide the patients of lgg_train"),
        (["DATASETS.TRAIN", "('folds_nameless',)"], 2, [], "'folds_nameless' names no patients"),
        (["DATASETS.TRAIN", "('folds_train', 'folds_train')"], 2, [], "share patients"),
        (
            ["DATASETS.TEST", "('folds_val',)"],
            2,
            [],
            "folds_val .DATASETS.TEST. has patients of .*, E for one",
        ),
        (["DATASETS.TRAIN", "()"], 2, [], "DATASETS.TRAIN is empty"),
        (
            ["MODEL.UNET.DEPTH", "3"],
            2,
            [],
            "fold_0 holds a training with another config .*DEPTH 2 -> 3",
        ),
    ],
)
def test_faults_are_named_before_anything_is_trained(whole, more, folds, only, message):
    with pytest.raises((ValueError, FileExistsError), match=message):
        CrossValidation(CONFIG, opts(whole, *more), folds, only)
