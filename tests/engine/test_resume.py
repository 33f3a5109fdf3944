"""Trainings that were interrupted end with the same weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import kills
import pytest
import torch
from engine_toys import At, final, trained

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def data(toy_data, usual_handlers):
    pass


def test_killed_trainings_end_with_the_same_weights(tmp_path):
    # in a process of its own, which forks the trainings: this one may have threads already
    output = tmp_path / "counts.json"
    command = [sys.executable, "-m", "tests.kills", "habits", "--kills", "2", "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    counts = json.loads(output.read_text())["habits"]
    assert counts["kills"] == 2
    assert counts["equal"] == counts["finished"] >= 1


def test_spectral_penalty_and_fraction_go_on_exactly(tmp_path):
    for mode in ("spectral", "exact"):
        opts = "ISO.ORTHO.MODE", mode, "ISO.ORTHO.COEFF", 0.5, "ISO.ORTHO.BOUND", 0.3, "SOLVER.MAX_ITER", 6
        opts += ("ISO.ORTHO.FRACTION", 0.4) if mode == "exact" else ()
        trained(tmp_path / f"{mode}whole", *opts)
        with pytest.raises(SystemExit):
            trained(tmp_path / mode, *opts, hook=At(2, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
        trained(tmp_path / mode, *opts)
        assert kills.digest(tmp_path / mode) == kills.digest(tmp_path / f"{mode}whole")


def test_retinanet_goes_on_with_its_normalizer(tmp_path):
    opts = [
        "MODEL.META_ARCHITECTURE",
        "RetinaNet",
        "MODEL.BACKBONE.NAME",
        "build_retinanet_isonet_fpn_backbone",
    ]
    opts += ["MODEL.FPN.OUT_CHANNELS", 8, "MODEL.RETINANET.NUM_CLASSES", 1]
    opts += ["MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.RETINANET.NUM_CONVS", 1]
    opts += ["SOLVER.MAX_ITER", 4, "DATASETS.TEST", ()]
    whole = trained(tmp_path / "whole", *opts)
    assert whole.model.loss_normalizer != 100  # as it starts
    with pytest.raises(SystemExit):
        trained(tmp_path / "parts", *opts, hook=At(1, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    assert trained(tmp_path / "parts", *opts).model.loss_normalizer == whole.model.loss_normalizer
    parts, wanted = (final(tmp_path / name)["model"] for name in ("parts", "whole"))
    # not bit by bit: two undisturbed runs of a RetinaNet differ in the last bits, too
    torch.testing.assert_close(parts, wanted, rtol=0, atol=1e-7)


def test_histories_stay_short(tmp_path):
    trainer = trained(tmp_path, "SOLVER.MAX_ITER", 2)
    assert {h._max_length for h in trainer.storage.histories().values()} == {1000}
