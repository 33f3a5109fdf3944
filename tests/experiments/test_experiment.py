from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from iso_d2.data.lgg import PATIENTS
from iso_d2.data.lgg_patients import choose_slices
from iso_d2.isometry import SharedScale, SReLU
from iso_d2.reproduction.arm import GROUPS, SCALES, Run
from iso_d2.reproduction.arms import ARMS, in_order
from iso_d2.reproduction.jobs import Job, train_images
from iso_d2.reproduction.needs import NEEDS
from iso_d2.reproduction.report_values import TABLES

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {arm.name: arm for arm in ARMS}
RUNS = [(arm, scale) for arm in ARMS for scale in SCALES if isinstance(getattr(arm, scale), Run)]


def config(name, scale):
    return Job(BY_NAME[name], scale, 1, ROOT).config


def test_names_are_unique_and_refer_to_what_there_is():
    assert len(BY_NAME) == len(ARMS)
    for arm in ARMS:
        assert arm.group in GROUPS and set(arm.needs) <= set(NEEDS)
        assert arm.starts_from in {"", *BY_NAME} and arm.same_as in {"", *BY_NAME}
        assert arm.table == "pretraining" or arm.table in {table.arms for table in TABLES}
    for table in TABLES:
        assert set(table.report) <= {arm.name for arm in ARMS if arm.table == table.arms}


@pytest.mark.parametrize(("arm", "scale"), RUNS, ids=lambda x: getattr(x, "name", x))
def test_every_arm_has_a_config_that_can_be_resumed(arm, scale):
    job = Job(arm, scale, 1, ROOT)
    cfg = job.config
    assert cfg.SEED == 1 and cfg.OUTPUT_DIR.startswith(f"output/reproduce/{scale}/{arm.name}")
    assert 0 < job.iterations < 100_000 and cfg.SOLVER.CHECKPOINT_PERIOD <= 2000
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *filter(None, [job.run.evaluate])}
    assert names <= set(DatasetCatalog.list())
    measured = {m.dataset for table in TABLES if table.arms == arm.table for m in table.metrics}
    assert arm.table == "pretraining" or measured & names


def test_the_reports_runs_have_its_settings():
    cfg = config("cifar100-isonet-gamma3e-4", "full")
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.BASE_LR, cfg.ISO.ORTHO.COEFF) == (100, 0.02, 3e-4)
    assert list(cfg.SOLVER.EPOCH_STEPS) == [30, 60, 90] and not cfg.MODEL.ISONET.RESIDUAL
    cfg = config("mri-image-isounet", "full")
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.LGG_SPLIT) == (50, 20, "image")
    assert cfg.MODEL.UNET.LOSS == "dice"
    assert [arm.name for arm in ARMS[:4]] == [
        "cifar10-risonet-gamma1e-4",
        "cifar10-isonet-gamma1e-4",
        "mri-image-isounet",
        "mri-image-unet-bn",
    ]


def test_arms_of_a_table_have_the_same_schedule():
    for table in {arm.table for arm in ARMS} - {"pretraining"}:
        for scale in SCALES:
            solvers = set()
            for arm, where in RUNS:
                if arm.table == table and where == scale:
                    job = Job(arm, scale, 1, ROOT)
                    s = job.config.SOLVER
                    images = s.IMS_PER_BATCH
                    schedule = [job.iterations, s.WARMUP_ITERS, *s.STEPS, *s.EPOCH_STEPS]
                    if table == "signal-scenes":  # batches differ: the same at the same number of images
                        solvers.add((s.BASE_LR / images, *(steps * images for steps in schedule)))
                    else:  # those of the signal have the best rate of each network
                        rate = None if arm.group == "signal" else s.BASE_LR
                        solvers.add((images, rate, *schedule))
            assert len(solvers) <= 1, (table, scale)


def test_iterations_follow_from_the_images():
    records = [
        {"patient": name, "slice": number}
        for name, p in PATIENTS.items()
        for number in range(1, p.slices + 1)
    ]
    for split in ("image", "patient"):
        chosen = choose_slices("train", split, 0, 5, PATIENTS, records)
        assert train_images("lgg_train", split) == len(chosen)
    # 100 epochs of 50,000 images in batches of 128; 50 epochs of 3,340 slices in batches of 20
    assert Job(BY_NAME["cifar10-resnet-bn"], "full", 1, ROOT).iterations == 39062
    assert Job(BY_NAME["mri-image-unet-bn"], "full", 1, ROOT).iterations == 8350
    assert Job(BY_NAME["coco-batch1-risonet-fpn"], "full", 1, ROOT).iterations == 12_000


def test_what_is_short_differs_in_length_alone():
    for arm in ARMS:
        if isinstance(arm.medium, Run) and isinstance(arm.small, Run):
            medium, small = (Job(arm, scale, 1, ROOT) for scale in ("medium", "small"))
            assert medium.iterations > 2.4 * small.iterations
            assert (arm.medium.net, arm.medium.config) == (arm.small.net, arm.small.config)
            assert medium.config.MODEL == small.config.MODEL and medium.config.INPUT == small.config.INPUT


def test_in_small_the_ablation_comes_last():
    tables = [arm.table for arm in in_order("small")]
    assert tables[-5:] == ["ablation"] * 5 and "ablation" not in tables[:-5]
    assert in_order("full") == ARMS


def test_ablations_take_away_what_they_say():
    whole = build_model(config("cifar10-ablation-none", "small"))
    nets = {
        key: build_model(config(f"cifar10-ablation-{key}", "small"))
        for key in ("no-delta", "no-srelu", "no-scale")
    }

    def scales(net):
        return {module.scale.item() for module in net.modules() if isinstance(module, SharedScale)}

    def zeros(net):
        weight = net.backbone.res3[1].branch.conv1.weight
        return (weight == 0).float().mean().item()

    assert scales(whole) == {0.0} and scales(nets["no-scale"]) == {1.0}
    assert zeros(whole) > 0.99 and zeros(nets["no-delta"]) == 0.0
    thresholds = [m.threshold for m in nets["no-srelu"].modules() if isinstance(m, SReLU)]
    assert all((t == 0).all() and not t.requires_grad for t in thresholds)
    assert config("cifar10-ablation-no-penalty", "small").ISO.ORTHO.COEFF == 0
    assert config("cifar10-ablation-no-scale", "small").SOLVER.SCALE_LR_FACTOR == 0
