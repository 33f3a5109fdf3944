"""Folders as trainings leave them, and their pages."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from report_toys import HOSTILE, row, write_run

from iso_d2.reporting import write_report


def write_pictures(folder, panels, titles):
    folder.mkdir(parents=True)
    entries = []
    for i, title in enumerate(titles):
        pixels = np.full((60, 80 * len(panels), 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        entry = {"file": f"{i}.png", "title": title, "note": "n", "panels": panels, "error": i / 2}
        entries.append(entry)
    (folder / "pictures.json").write_text(json.dumps(entries))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """dict: name -> folder of a detector, classifier, UNet, killed and diverged run."""
    root = tmp_path_factory.mktemp("runs")
    layer = {
        f"isometry/backbone.res{i}.conv_{w}": v
        for i in (2, 3)
        for w, v in (("min", 0.5), ("max", 2), ("error", 1))
    }
    ap = {"bbox/AP": 30.0, "bbox/AP50": 60.0, f"bbox/AP-{HOSTILE}": 31.0, "bbox/AP-car": math.nan}
    rows = [
        row(0, **layer),
        row(19, loss_cls=1.0),
        row(39, **ap),
        row(59, **layer),
        row(79, **ap, **{"ortho/total": 1}),
    ]
    detector = write_run(root / "detector", rows)
    write_pictures(detector / "visualizations" / "a_test", ["truth", "prediction"], [HOSTILE, "b", "c"])
    started = {"command": "iso-d2 train --config-file a.yaml", "date": "2030-01-02", "commit": "abc123"}
    (detector / "run.json").write_text(json.dumps([{**started, "versions": {"torch": "9.9"}}]))
    classifier = write_run(root / "classifier", [row(19), row(39, **{"classification/top1": 50.0})])
    inference = classifier / "inference" / "a_test"
    inference.mkdir(parents=True)
    content = {"class_accuracy": {"cat": 75.0, HOSTILE: 0.0}, "confusion_matrix": [[3, 1], [2, 0]]}
    (inference / "classification.json").write_text(json.dumps(content))
    unet = write_run(root / "unet", [row(19), row(39, **{"segmentation/volume_dice_mean": 80.0})])
    inference = unet / "inference" / "a_test"
    inference.mkdir(parents=True)
    counts = {"num_slices": 5, "num_tumour_slices": 2, "true": 9, "predicted": 8, "intersection": 7}
    patients = [{"patient": f"p{dice}", "dice": dice, **counts} for dice in (60.0, 90.0, 70.0)]
    (inference / "segmentation.json").write_text(json.dumps({"patients": patients}))
    killed = write_run(root / "killed", [row(19), row(39)], finished=False)
    with (killed / "metrics.json").open("a") as file:
        file.write('{"iteration": 59, "total_l')
    diverged = write_run(root / "diverged", [row(19), row(39), row(59, loss_a=1.0)], finished=False)
    with (diverged / "metrics.json").open("a") as file:
        file.write('{"iteration": 79, "total_loss": NaN, "loss_a": Infinity, "lr": 0.1}\n')
    return {f.name: f for f in (detector, classifier, unet, killed, diverged)}


@pytest.fixture(scope="session")
def pages(runs):
    return {name: write_report(folder) for name, folder in runs.items()}
