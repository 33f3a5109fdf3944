import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from toy_records import toy_record, toy_records

from experiments import figures
from experiments.experiment import TABLES
from experiments.figures import curves, save, write_figures

RISONET, ISONET = "cifar10-risonet-gamma1e-4", "cifar10-isonet-gamma1e-4"
CIFAR10 = next(table for table in TABLES if table.name == "cifar10")


def test_curves_are_by_epoch_and_without_the_penalty():
    records = toy_records(toy_record(RISONET, final={"cifar10_test": {"top1": 40.0}}), toy_record(ISONET))
    losses, measure = curves(CIFAR10, records, "cpu").axes
    assert [line.get_label() for line in losses.lines] == ["R-ISONet, gamma 1e-4", "ISONet, gamma 1e-4"]
    # iterations 100, 200 and 391 of 128 of 50,000 images
    np.testing.assert_allclose(losses.lines[0].get_xdata(), [0.256, 0.512, 1.00096])
    np.testing.assert_allclose(losses.lines[0].get_ydata(), [2.25, 1.75, 1.5])
    # one evaluation of one net: a bar
    assert [(bar.get_width(), bar.get_facecolor()) for bar in measure.patches] == [
        (40.0, to_rgba(losses.lines[0].get_color()))
    ]
    assert curves(CIFAR10, toy_records(), "cpu") is None


def test_several_evaluations_are_lines_by_epoch():
    points = [{"iteration": i, "metrics": {"top1": v}} for i, v in ((390, 40.0), (781, 50.0))]
    record = toy_record(RISONET, evaluations={"cifar10_test": points})
    _, measure = curves(CIFAR10, toy_records(record), "cpu").axes
    np.testing.assert_allclose(measure.lines[0].get_xydata(), [[1.00096, 40.0], [2.00192, 50.0]])


def test_epochs_depend_on_the_training_set():
    # 3,347 and 3,340 slices
    for name, epochs in (("lgg_train", 8.0), ("lgg_image_train", 8 * 3347 / 3340)):
        record = toy_record("signal-lgg-unet-bn", dataset=name, batch=8)
        assert figures.epochs(record, {"iteration": 3346}) == pytest.approx(epochs)


def test_what_diverged_does_not_hide_the_others():
    wild = [{"iteration": i, "loss_cls": 900.0, "total_loss": 900.0} for i in (9, 19)]
    records = toy_records(toy_record(RISONET), toy_record(ISONET, diverged=25, curve=wild))
    losses, _ = curves(CIFAR10, records, "cpu").axes
    assert losses.get_ylim() == pytest.approx((0.95 * 1.5, 1.05 * 2.25))
    assert [line.get_label() for line in losses.lines][1] == "ISONet, gamma 1e-4: diverged"


def test_patients_out_of_fold():
    folds = next(table for table in TABLES if table.name == "mri-folds")

    def fold(name, seed, dice):
        return toy_record(f"mri-folds-{name}", seed=seed, patients={f"lgg_fold{seed - 1}of5_val": dice})

    records = toy_records(
        fold("isounet-scaled", 1, {"a": 80.0, "b": 60.0}),
        fold("isounet-scaled", 2, {"c": 40.0}),
        fold("unet-bn", 1, {"a": 70.0, "b": 50.0}),
    )
    shares, pairs = figures.by_patient(folds, records, "cpu").axes
    assert [line.get_label() for line in shares.lines] == [
        "ISO-UNet, scaled: mean 60.0 % of 3 patients",
        "UNet, batch norm: mean 60.0 % of 2 patients",
    ]
    # all have 40 or more, two of three 60 or more, one of them 80
    np.testing.assert_allclose(shares.lines[0].get_xydata(), [[40, 100], [60, 200 / 3], [80, 100 / 3]])
    # of the patients of both: batch norm's to the right, the other's upwards
    np.testing.assert_allclose(pairs.lines[0].get_xydata(), [[70, 80], [50, 60]])
    assert figures.by_patient(folds, toy_records(), "cpu") is None


def test_batches_side_by_side_with_the_spread_of_their_seeds():
    scenes = next(table for table in TABLES if table.name == "signal-scenes")

    def run(net, batch, seed, ap, **more):
        final = {} if ap is None else {"shapes_test": {"AP": ap}}
        return toy_record(f"signal-scenes-{net}-batch{batch}", "cpu", seed, final, batch=batch, **more)

    records = toy_records(
        *(run("risonet", 1, seed, ap) for seed, ap in ((1, 30.0), (2, 34.0))),
        run("risonet", 8, 1, 40.0),
        run("bn", 1, 1, float("nan")),
        run("bn", 8, 1, None, diverged=25),
        run("bn", 8, 2, None),  # has no such measure: left out
    )
    axes = figures.by_batch(scenes, records, "cpu").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "R-ISONet-18 FPN",
        "ResNet-18 FPN, batch norm",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "8"]
    means = [container[0].get_ydata().tolist() for container in axes.containers]
    assert means == [[32.0, 40.0], [0.0, 0.0]]
    ends = axes.containers[0][2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(ends, [32 - 8**0.5, 32 + 8**0.5])
    assert figures.by_batch(scenes, toy_records(), "cpu") is None


def test_pictures_are_files_that_are_not_blank(tmp_path):
    drawn, notes = write_figures(tmp_path, toy_records(toy_record(RISONET)))
    assert [path.name for path in drawn] == ["reproduction_cifar10_cpu.png"] and notes == []
    pixels = np.asarray(Image.open(drawn[0]).convert("L"))
    assert (pixels < 128).mean() > 0.001 and (pixels > 240).mean() > 0.5


def test_without_checkpoints_an_old_picture_stays(tmp_path, monkeypatch):
    folder = tmp_path / "docs" / "figures"
    folder.mkdir(parents=True)
    old = folder / "reproduction_samples_mri-patient_cpu.png"
    old.write_bytes(b"old")
    record = toy_record("mri-patient-isounet", table="mri-patient", dataset="lgg_train")
    _, notes = write_figures(tmp_path, toy_records(record))
    assert old.read_bytes() == b"old"
    assert len(notes) == 1 and "mri-patient-isounet/seed1/model_final.pth is not here" in notes[0]


def test_large_pictures_are_made_smaller(tmp_path, monkeypatch):
    figure = Figure(figsize=(4, 4))
    figure.subplots().imshow(np.random.default_rng(0).random((400, 400)))
    whole = save(figure, tmp_path / "whole.png").stat().st_size
    monkeypatch.setattr(figures, "MAX_BYTES", whole // 2)
    assert 0 < save(figure, tmp_path / "half.png").stat().st_size <= whole // 2
