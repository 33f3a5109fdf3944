import json
import os

import engine_toys
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase, launch
from detectron2.utils.env import seed_all_rng
from engine_toys import toy_config
from PIL import Image

from iso_d2.engine import DeltaInitHook, OrthogonalityLossHook, Trainer


@pytest.fixture(autouse=True)
def data(toy_data):
    pass


def metrics(folder):
    with open(os.path.join(folder, "metrics.json")) as f:
        return [json.loads(line) for line in f]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_training_leaves_losses_checkpoint_results_and_pictures(tmp_path):
    cfg = toy_config(tmp_path, "ISO.ORTHO.COEFF", 0.01, "TEST.VISUALIZE", 2)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    merged = {name: value for line in metrics(tmp_path) for name, value in line.items()}
    assert merged["loss_ortho"] > 0
    layers = [name for name in merged if name.startswith("ortho/backbone.res")]
    assert len(layers) == 7
    assert merged["ortho/total"] == pytest.approx(sum(merged[name] for name in layers))
    # The toy always finds the box, so each average precision is 100.
    assert merged["bbox/AP"] == pytest.approx(100)
    assert os.path.isfile(tmp_path / "model_final.pth")
    pictures = sorted(os.listdir(tmp_path / "visualizations" / "toy_test"))
    assert pictures == ["000_toy_test_0.png", "001_toy_test_1.png", "pictures.json"]
    with Image.open(tmp_path / "visualizations" / "toy_test" / pictures[0]) as image:
        assert image.size == (2 * 10 * engine_toys.WIDTH, 10 * engine_toys.HEIGHT)  # at least 480 wide
    assert os.path.isfile(tmp_path / "inference" / "toy_test" / "coco_instances_results.json")
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(tmp_path))


def test_channels_last_changes_the_layout_and_not_the_training(tmp_path):
    trained = []
    for last in (False, True):
        seed_all_rng(1)
        cfg = toy_config(tmp_path / str(last), "MODEL.CHANNELS_LAST", last, "ISO.ORTHO.COEFF", 0.1)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        weight = trainer.model.backbone.res2[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        trainer.train()
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        trained.append(weights(trainer))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-3, atol=1e-5)


def test_hooks_follow_the_config(tmp_path):
    def hooks(*opts):
        return [type(hook) for hook in Trainer(toy_config(tmp_path, *opts))._hooks]

    ours = {DeltaInitHook, OrthogonalityLossHook}
    assert not ours & set(hooks("ISO.ORTHO.COEFF", 0.0))
    both = hooks("ISO.ORTHO.COEFF", 0.1, "ISO.DELTA_INIT.ENABLED", True)
    assert both[:2] == [DeltaInitHook, OrthogonalityLossHook]
    assert both[-1].__name__ == "PeriodicWriter"
    opts = ["ISO.ORTHO.MODE", "exact", "ISO.ORTHO.PERIOD", 4, "ISO.ORTHO.LOG_PERIOD", 8]
    trainer = Trainer(
        toy_config(tmp_path, *opts, "ISO.ORTHO.INCLUDE", ["backbone"], "ISO.ORTHO.EXCLUDE", ["*.res3"])
    )
    (hook,) = (hook for hook in trainer._hooks if isinstance(hook, OrthogonalityLossHook))
    assert (hook.mode, hook.period, hook.log_period) == ("exact", 4, 8)
    assert (hook.include, hook.exclude) == (["backbone"], ["*.res3"])


class Killed(Exception):
    pass


class KillBefore(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise Killed


def test_resuming_after_a_kill_loses_less_than_a_period(tmp_path, log):
    opts = ["SOLVER.MAX_ITER", 7, "SOLVER.CHECKPOINT_PERIOD", 2, "ISO.DELTA_INIT.ENABLED", True]
    cfg = toy_config(tmp_path, *opts, "DATASETS.TEST", ())
    first = Trainer(cfg)
    first.resume_or_load(resume=True)
    assert "Nothing to resume" in log.text and "Starting from the initialisation" in log.text
    first.register_hooks([KillBefore(5)])
    with pytest.raises(Killed):
        first.train()
    saved = torch.load(tmp_path / "model_0000003.pth")["model"]

    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 4  # steps 0 to 3 are kept of 0 to 4
    assert same(saved, weights(second))
    momentum = second.optimizer.state_dict()["state"][0]["momentum_buffer"]
    second.train()
    assert momentum.any()
    assert second.iter == 7
    assert not any(line["iteration"] < 4 and "bbox/AP" in line for line in metrics(tmp_path))
    assert "No delta initialisation" in log.text


def test_delta_init_only_without_weights(tmp_path):
    opts = ["ISO.DELTA_INIT.ENABLED", True, "SOLVER.BASE_LR", 0.0, "DATASETS.TEST", ()]
    fresh = Trainer(toy_config(tmp_path / "fresh", *opts))
    before = weights(fresh)
    fresh.resume_or_load(resume=False)
    fresh.train()
    assert not fresh.model.backbone.res3[0].conv2.weight.any()

    torch.save({"model": before}, tmp_path / "weights.pth")
    loaded = Trainer(toy_config(tmp_path / "loaded", *opts, "MODEL.WEIGHTS", str(tmp_path / "weights.pth")))
    loaded.resume_or_load(resume=False)
    loaded.train()
    assert same(before, weights(loaded))


def test_warning_of_unscaled_images(tmp_path, log):
    Trainer(toy_config(tmp_path))
    assert "MODEL.PIXEL_STD is 1 and the backbone has no normalization layer" in log.text
    log.clear()
    std = ["MODEL.PIXEL_STD", [58.4, 57.1, 57.4]]
    Trainer(toy_config(tmp_path, *std))
    assert "PIXEL_STD" not in log.text


def test_unusable_data_sets_stop_before_the_model_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "build_model", lambda cfg: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        Trainer(toy_config(tmp_path, "DATASETS.TRAIN", ()))
    with pytest.raises(KeyError, match="'toy_tset' is not registered"):
        Trainer(toy_config(tmp_path, "DATASETS.TEST", ("toy_tset",)))
    monkeypatch.setitem(vars(MetadataCatalog.get("toy_test")), "evaluator_type", "cocoa")
    with pytest.raises(ValueError, match="'toy_test' has evaluator_type 'cocoa', accepted are "):
        Trainer(toy_config(tmp_path))
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [])
    with pytest.raises(ValueError, match=r"'toy_test' \(DATASETS\.TEST\) has no images"):
        Trainer(toy_config(tmp_path))


def test_missing_files_of_detectron2s_own_sets_are_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("TRAIN", "TEST"):
        cfg = toy_config(tmp_path, f"DATASETS.{name}", ("coco_2017_val_100",))
        with pytest.raises(
            FileNotFoundError, match=r"instances_val2017_100\.json, which does not exist"
        ) as error:
            Trainer(cfg)
        assert f"root is {tmp_path}; set DETECTRON2_DATASETS" in str(error.value)


def test_more_classes_than_the_model_has(tmp_path):
    cfg = toy_config(tmp_path, "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 0)
    with pytest.raises(ValueError, match=r"'toy_test' has 1 classes .* set MODEL\.RETINANET\.NUM_CLASSES 1"):
        Trainer.check_datasets(cfg)


def test_mappers(tmp_path):
    with pytest.raises(
        ValueError, match=r"INPUT\.MAPPER must be one of albumentations, detectron2, got 'mine'"
    ):
        Trainer.build_test_loader(toy_config(tmp_path, "INPUT.MAPPER", "mine"), "toy_test")
    pipelines = ["INPUT.ALBUMENTATIONS.TRAIN", [["Resize", {"height": 20, "width": 24}]]]
    cfg = toy_config(tmp_path, "INPUT.MAPPER", "albumentations", *pipelines)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    assert [x["image"].shape for x in batch] == [(3, 20, 24)] * 2
    sizes = {
        name: next(iter(Trainer.build_test_loader(cfg, name)))[0]["image"].shape for name in ["toy_test"]
    }
    assert sizes == {"toy_test": (3, 512, 512)}
    batch = next(iter(Trainer.build_train_loader(toy_config(tmp_path))))
    assert batch[0]["image"].shape == (3, engine_toys.HEIGHT, engine_toys.WIDTH)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu(2))])
def test_two_processes(tmp_path, device):
    launch(engine_toys.train_in_one_process, 2, dist_url="auto", args=(str(tmp_path), device))
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", map_location="cpu") for rank in range(2))
    assert same(first, second)
    merged = {name: value for line in metrics(tmp_path) for name, value in line.items()}
    assert merged["loss_ortho"] > 0
    assert merged["bbox/AP"] == pytest.approx(100)
