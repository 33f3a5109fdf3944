from functools import partial

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from engine_toys import toy_config
from torch import nn

from iso_d2.engine import Trainer
from iso_d2.engine.mixed_precision import AccumulatingTrainer, BF16Trainer, inner_trainer
from iso_d2.engine.setup import load_config


@pytest.fixture(autouse=True)
def data(toy_data):
    pass


BF16 = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bf16")


def test_bf16_trains_on_the_cpu(tmp_path):
    trainer = Trainer(toy_config(tmp_path, *BF16, "ISO.ORTHO.COEFF", 0.01))
    seen = {}

    def look(module, _, output):
        seen[module] = output.dtype

    convs = [module for module in trainer.model.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        conv.register_forward_hook(look)
    before = [conv.weight.detach().clone() for conv in convs]
    losses = {}
    write = trainer._trainer._write_metrics
    trainer._trainer._write_metrics = lambda values, *args: (losses.update(values), write(values, *args))
    trainer.train()
    assert set(seen.values()) == {torch.bfloat16}
    assert losses["loss_ortho"].dtype == torch.float32
    for conv, old in zip(convs, before, strict=True):
        assert conv.weight.dtype == conv.weight.grad.dtype == torch.float32
        assert conv.weight.isfinite().all() and not torch.equal(conv.weight, old)


def test_bf16_takes_the_step_of_float32_up_to_rounding():
    """One step of plain SGD on a loss that is one tensor: w - lr * dL/dw, dL/dw = 2 x^2 w for (w x)^2."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.linear.weight, 0.5)

        def forward(self, x):
            return self.linear(x).float().square().sum()

    model = Square()
    trainer = BF16Trainer(model, [torch.tensor([[3.0]])], torch.optim.SGD(model.parameters(), lr=0.01))
    with EventStorage(0) as trainer.storage:
        trainer.iter = 0
        trainer.run_step()
        assert trainer.storage.latest()["total_loss"][0] == pytest.approx(2.25)
    assert model.linear.weight.item() == pytest.approx(0.5 - 0.01 * 9, rel=1e-2)


@pytest.mark.parametrize("early", [False, True])
def test_bf16_writes_the_losses_when_all_work_is_queued(monkeypatch, early):
    model, calls = nn.Linear(1, 1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = BF16Trainer(model, [torch.ones(1, 1)], optimizer, zero_grad_before_forward=early)
    model.register_forward_pre_hook(lambda *_: calls.append("forward"))
    for target, name in ((optimizer, "zero_grad"), (optimizer, "step"), (trainer, "_write_metrics")):
        monkeypatch.setattr(target, name, lambda *_, name=name: calls.append(name))
    trainer.run_step()
    first = ["zero_grad", "forward"] if early else ["forward", "zero_grad"]
    assert calls == [*first, "step", "_write_metrics"]


def test_bf16_writes_asynchronously_if_asked_to(monkeypatch):
    model, written = nn.Linear(1, 1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = BF16Trainer(model, [torch.ones(1, 1)], optimizer, async_write_metrics=True)
    trainer.iter = 7
    monkeypatch.setattr(trainer, "_write_metrics", lambda *_, iter=None: written.append(iter))
    trainer.run_step()
    trainer.concurrent_executor.shutdown(wait=True)
    assert written == [7]


@pytest.mark.parametrize(
    "make", [BF16Trainer, partial(AccumulatingTrainer, parts=2, precision=torch.bfloat16)]
)
def test_boxes_are_not_rounded_for_bf16_features(make):
    """513 would be 512 in bfloat16: the one bright column shows which box was pooled."""
    pooler = ROIAlign((1, 1), 1.0, 1)
    model = nn.Sequential(pooler, nn.Linear(1, 1))
    make(model, [], torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    features = torch.zeros(1, 1, 4, 600, dtype=torch.bfloat16)
    features[..., 513] = 8
    box = torch.tensor([[0.0, 513.0, 0.0, 514.0, 4.0]])
    assert pooler(features, box).item() == pytest.approx(8)


def test_regions_of_a_pyramid_are_pooled_from_bf16_features():
    """A box of 8 pixels goes to the first level, one of 600 to the second: each holds another value."""
    pooler = ROIPooler(2, (1.0, 0.5), 1, "ROIAlignV2", canonical_box_size=512, canonical_level=1)
    BF16Trainer(nn.Sequential(pooler), [], torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    levels = [
        torch.full((1, 1, 800 // s, 800 // s), value, dtype=torch.bfloat16) for s, value in ((1, 3), (2, 5))
    ]
    boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 600.0, 600.0]]))
    pooled = pooler(levels, [boxes])
    assert pooled.dtype == torch.float32
    assert pooled.mean((1, 2, 3)).tolist() == [3.0, 5.0]


def test_the_config_chooses(tmp_path):
    assert inner_trainer(toy_config(tmp_path)) is SimpleTrainer
    assert inner_trainer(toy_config(tmp_path, *BF16)) is BF16Trainer
    assert inner_trainer(toy_config(tmp_path, "SOLVER.AMP.ENABLED", True)) is AMPTrainer
    for opts, precision in ((BF16, torch.bfloat16), (BF16[:2], torch.float16), ((), None)):
        made = inner_trainer(toy_config(tmp_path, *opts, "SOLVER.ACCUMULATE", 2))
        assert made.func is AccumulatingTrainer and made.keywords == {"parts": 2, "precision": precision}
    with pytest.raises(ValueError, match=r"AMP\.PRECISION must be one of fp16, bf16, got 'half'"):
        Trainer(toy_config(tmp_path, "SOLVER.AMP.PRECISION", "half"))


def test_bf16_stays_on_without_cuda():
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "True"]
    assert load_config(opts=[*opts, "SOLVER.AMP.PRECISION", "bf16"]).SOLVER.AMP.ENABLED
    assert not load_config(opts=opts).SOLVER.AMP.ENABLED


@pytest.mark.gpu(1)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_both_precisions_train_on_cuda(tmp_path, precision):
    opts = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", precision, "MODEL.DEVICE", "cuda")
    trainer = Trainer(toy_config(tmp_path, *opts))
    trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
