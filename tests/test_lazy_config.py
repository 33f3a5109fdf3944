"""The LazyConfig says what the yaml of its name says, and Detectron2's own trainer trains it."""

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage

from iso_d2.data.mappers import build_mapper
from iso_d2.engine import build_optimizer
from iso_d2.engine.setup import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = [
    "model.backbone.bottom_up.depth=18",
    "model.backbone.out_channels=16",
    "model.roi_heads.box_head.fc_dims=[32,32]",
    "model.roi_heads.batch_size_per_image=16",
    "dataloader.train.dataset.names=shapes_train",
    "dataloader.train.mapper.augmentations.0.height=64",
    "dataloader.train.mapper.augmentations.0.width=96",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "train.device=cpu",
    "train.max_iter=2",
    "train.checkpointer.period=100",
    "train.hooks.1.exclude=['*.res5']",  # for time
    "lr_multiplier.warmup_length=0.0",
    "lr_multiplier.scheduler.num_updates=4500",
]


def lazy(*overrides):
    return LazyConfig.apply_overrides(
        LazyConfig.load(str(CONFIGS / "lazy/risonet50_frcnn_fpn.py")), list(overrides)
    )


def test_it_is_the_yaml_of_its_name():
    cfg, device = lazy(), ["MODEL.DEVICE", "meta"]
    of_yaml = load_config(CONFIGS / "risonet50_frcnn_fpn.yaml", device)
    with torch.device("meta"):
        model, like = instantiate(cfg.model), build_model(of_yaml)
    assert str(model) == str(like)
    assert {n: v.shape for n, v in model.state_dict().items()} == {
        n: v.shape for n, v in like.state_dict().items()
    }

    cfg.optimizer.params.model = model
    optimizer, expected = instantiate(cfg.optimizer), build_optimizer(of_yaml, like)
    assert settings(optimizer, model) == settings(expected, like)
    scheduler = build_lr_scheduler(of_yaml, expected)
    for step in (0, 250, 499, 500, 2999, 3000, 4000):
        scheduler.last_epoch = step
        factor = scheduler.get_lr()[0] / scheduler.base_lrs[0]
        assert instantiate(cfg.lr_multiplier)(step / cfg.train.max_iter) == pytest.approx(factor)
    for part in ("train", "test"):
        mapper, reads = instantiate(cfg.dataloader[part].mapper), build_mapper(of_yaml, part == "train")
        assert str(mapper.pipeline) == str(reads.pipeline) and mapper.image_format == reads.image_format
        assert list(of_yaml.DATASETS[part.upper()]) == [cfg.dataloader[part].dataset.names]
    assert cfg.dataloader.evaluator.dataset_name == "coco_pbc_test"
    assert cfg.dataloader.train.total_batch_size == of_yaml.SOLVER.IMS_PER_BATCH
    assert (cfg.train.max_iter, cfg.train.eval_period, cfg.train.checkpointer.period) == (
        of_yaml.SOLVER.MAX_ITER,
        of_yaml.TEST.EVAL_PERIOD,
        of_yaml.SOLVER.CHECKPOINT_PERIOD,
    )


def settings(optimizer, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    keys = ("lr", "weight_decay", "momentum", "nesterov")
    return {
        names[parameter]: [group[key] for key in keys]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_its_losses_are_those_of_the_yaml():
    cfg = lazy(*SMALL)
    options = ["MODEL.DEVICE", "cpu", "MODEL.ISONET.DEPTH", 18, "MODEL.FPN.OUT_CHANNELS", 16]
    options += ["MODEL.ROI_BOX_HEAD.FC_DIM", 32]
    options += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16]
    like = build_model(load_config(CONFIGS / "risonet50_frcnn_fpn.yaml", options))
    model = instantiate(cfg.model)
    model.load_state_dict(like.state_dict())
    batch = next(iter(instantiate(cfg.dataloader.train)))
    losses = []
    for detector in (model, like):
        torch.manual_seed(0)
        with EventStorage(), torch.no_grad():
            losses.append({name: float(value) for name, value in detector(batch).items()})
    assert losses[0] == losses[1] and len(losses[0]) == 4


class Weights(HookBase):
    """A convolution before the first step and after the last."""

    def before_step(self):
        self.first = getattr(self, "first", self.weight())

    def after_train(self):
        self.last = self.weight()

    def weight(self):
        return self.trainer.model.backbone.bottom_up.res3[0].shortcut.weight.detach().clone()


def train(cfg):
    """What do_train of Detectron2's tools/lazyconfig_train_net.py does, with the hooks of the config."""
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    trainer = SimpleTrainer(create_ddp_model(model, **cfg.train.ddp), loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, optimizer=optimizer, trainer=trainer)
    scheduler, weights = hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)), Weights()
    saving = hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
    trainer.register_hooks([hooks.IterationTimer(), scheduler, saving])
    trainer.register_hooks([*instantiate(cfg.train.hooks), weights])
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    trainer.train(0, cfg.train.max_iter)
    return trainer, weights


def test_two_steps_with_both_hooks(tmp_path):
    """Also from the file that Detectron2's default_setup writes; a start from weights keeps them."""
    torch.manual_seed(0)
    off_start = "model.backbone.bottom_up.init=orthogonal"
    cfg = lazy(*SMALL, f"train.output_dir={tmp_path}", off_start)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    trainer, weights = train(LazyConfig.load(str(tmp_path / "config.yaml")))
    delta = torch.eye(128, 64)[..., None, None]
    assert torch.equal(weights.first, delta) and not torch.equal(weights.last, delta)
    history = trainer.storage.history("loss_ortho").values()
    assert [step for _, step in history] == [0, 1] and history[0][0] < 1e-3
    assert trainer.storage.history("total_loss").latest() > history[-1][0]

    checkpoint = str(tmp_path / "model_final.pth")
    _, again = train(
        lazy(
            *SMALL, f"train.output_dir={tmp_path}", f"train.init_checkpoint={checkpoint}", "train.max_iter=1"
        )
    )
    assert torch.equal(again.first, weights.last)
