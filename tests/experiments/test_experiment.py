from pathlib import Path

import pytest
from detectron2.modeling import build_model

from experiments.experiment import (
    BY_NAME,
    EXPERIMENTS,
    LEFT_OUT,
    TABLES,
    Metric,
    Setting,
    in_order,
    read_tables,
)
from experiments.run import Run
from iso_d2.isometry import SharedScale, SReLU

ROOT = Path(__file__).resolve().parents[2]


def config(name, scale):
    return Run(BY_NAME[name], scale, 1, ROOT).config


def test_names_are_unique_and_refer_to_what_there_is():
    assert len(BY_NAME) == len(EXPERIMENTS) == 88
    for experiment in EXPERIMENTS:
        assert {experiment.starts_from, experiment.same_as} <= {"", *BY_NAME}
    for table in TABLES:
        for experiment in table.experiments:
            assert len(experiment.report) <= len(table.metrics)
            assert bool(experiment.net) == table.by_batch


def test_the_reports_own_experiments_are_run_first():
    ordered = in_order()
    assert sorted(one.name for one in ordered) == sorted(BY_NAME)
    assert [bool(one.report) for one in ordered] == sorted(
        (bool(one.report) for one in ordered), reverse=True
    )
    assert [one.name for one in ordered[:2]] == ["cifar10-risonet-gamma1e-4", "cifar10-isonet-gamma1e-4"]


def test_the_reports_runs_have_its_settings():
    cfg = config("cifar100-isonet-gamma3e-4", "full")
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.BASE_LR, cfg.ISO.ORTHO.COEFF) == (100, 0.02, 3e-4)
    assert list(cfg.SOLVER.EPOCH_STEPS) == [30, 60, 90] and not cfg.MODEL.ISONET.RESIDUAL
    cfg = config("mri-image-isounet", "full")
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.LGG_SPLIT) == (50, 20, "image")
    assert cfg.MODEL.UNET.LOSS == "dice"


def test_ablations_take_away_what_they_say():
    def net(name):
        cfg = config(name, "full")
        cfg.MODEL.ISONET.DEPTH = 20
        cfg.MODEL.DEVICE = "cpu"
        return build_model(cfg)

    whole = net("cifar10-risonet-gamma1e-4")
    nets = {key: net(f"cifar10-ablation-{key}") for key in ("no-delta", "no-srelu", "no-scale")}

    def scales(net):
        return {module.scale.item() for module in net.modules() if isinstance(module, SharedScale)}

    def zeros(net):
        weight = net.backbone.res3[1].branch.conv1.weight
        return (weight == 0).float().mean().item()

    assert scales(whole) == {0.0} and scales(nets["no-scale"]) == {1.0}
    assert zeros(whole) > 0.99 and zeros(nets["no-delta"]) == 0.0
    thresholds = [m.threshold for m in nets["no-srelu"].modules() if isinstance(m, SReLU)]
    assert all((t == 0).all() and not t.requires_grad for t in thresholds)
    assert config("cifar10-ablation-no-penalty", "full").ISO.ORTHO.COEFF == 0
    assert config("cifar10-ablation-no-scale", "full").SOLVER.SCALE_LR_FACTOR == 0


FILE = """
group: toys
tables:
  - name: toys
    title: Toys
    metrics: [{heading: a, name: a}, {heading: b, name: b, digits: 2}]
    curve: b
    scales:
      full: {setup: long, options: "A 1 B (1,)"}
      cpu: {setup: brief, evaluate: toy_train}
    experiments:
      - {name: x, label: X, full: "x.yaml B (2,)", cpu: x.yaml, report: ["1", ""]}
      - {name: y, label: Y, full: [y.yaml, C '', "D '(3, 4)'"], cpu: y.yaml C 2}
      - {name: z, label: Z, same_as: x}
  - name: folds
    folds: 3
    scales: {full: no time}
    experiments: [{name: f, label: F, full: f.yaml}]
"""


@pytest.fixture
def toys(tmp_path):
    path = tmp_path / "toys.yaml"
    path.write_text(FILE)
    return read_tables(path)


def test_a_file_of_tables_says_how_each_experiment_is_trained(toys):
    toys, folds = toys
    x, y, z = toys.experiments
    assert x.settings["full"] == Setting("x.yaml", ("A", "1", "B", "(1,)", "B", "(2,)"), "long")
    assert x.settings["cpu"] == Setting("x.yaml", (), "brief", "toy_train")
    assert y.settings["full"].options == ("A", "1", "B", "(1,)", "C", "", "D", "(3, 4)")
    assert y.settings["cpu"].options == ("C", "2")
    assert (x.group, x.table, x.report) == ("toys", "toys", ("1", ""))
    assert toys.curve == Metric("b", name="b", digits=2)
    assert z.settings == {"full": "the same as x", "cpu": LEFT_OUT}
    (f,) = folds.experiments
    assert (x.folds, f.folds) == (0, 3) and f.settings == {"full": "no time", "cpu": LEFT_OUT}
