"""Metrics of trainings that never ran, and what the tests of their pages share."""

import json

NAMES = ["detector", "classifier", "unet", "killed", "diverged"]
HOSTILE = "<script>alert('x')</script>"


def row(step, **values):
    return {"iteration": step, "total_loss": 2.0 / (step + 1), "lr": 0.1, "time": 0.5, **values}


def write_run(folder, rows, finished=True):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "config.yaml").write_text(
        "DATASETS: {TRAIN: [a_train], TEST: [a_test]}\nSOLVER: {MAX_ITER: 90}\n"
    )
    if finished:
        (folder / "model_final.pth").touch()
    return folder
