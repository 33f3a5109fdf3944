"""Steps in n small parts are the steps of one large batch, where nothing is normalized over images."""

import os
import signal
from functools import partial

import kills
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from engine_toys import At, toy_config, toy_with_random_weights, trained
from test_processes import CONFIGS, SHORT, TRAININGS, Losses
from torch import nn

from iso_d2.engine import ModelPenalty, OrthogonalityLossHook, Trainer
from iso_d2.engine.mixed_precision import AccumulatingTrainer, parts_of
from iso_d2.engine.setup import load_config

# The clipping is far below the norms of the gradients.
OPTIONS = (
    "ISO.ORTHO.PERIOD 1 SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER 3 SOLVER.BASE_LR 0.1 "
    "SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model "
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0.5"
)
SPECTRAL = "MODEL.ISONET.SIGNAL", "scaled", "ISO.ORTHO.MODE", "spectral"


def train(folder, name, *opts):
    """The weights and each step's losses of a short training of those in test_processes."""
    config, options = TRAININGS[name]
    given = [*SHORT.split(), *options.split(), *OPTIONS.split(), *opts, "OUTPUT_DIR", str(folder)]
    torch.manual_seed(0)
    trainer, losses = Trainer(load_config(CONFIGS / config, given)), Losses()
    trainer.register_hooks([losses])
    trainer.resume_or_load(resume=False)
    trainer.train()
    return {name: p.detach() for name, p in trainer.model.named_parameters()}, losses.values


def apart(folder, parts, *training):
    """By how much trainings with 1 and n parts differ at most: weights, and losses by the total loss."""
    whole, divided = (train(folder / str(n), *training, "SOLVER.ACCUMULATE", str(n)) for n in (1, parts))
    weights = max((divided[0][name] - weight).abs().max().item() for name, weight in whole[0].items())
    steps = zip(divided[1], whole[1], strict=True)
    return weights, max(abs(a[name] - b[name]) / b["total_loss"] for a, b in steps for name in b)


@pytest.mark.parametrize(
    "parts, training",
    [
        (2, ["classifier"]),
        (4, ["classifier", *SPECTRAL]),
        (2, ["unet"]),
        # it takes all regions, of every image as many
        (2, ["detector", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1"]),
    ],
    ids=["classifier", "spectral", "unet", "detector"],
)
def test_parts_equal_the_whole_batch_without_normalization(tmp_path, parts, training):
    weights, losses = apart(tmp_path, parts, *training)
    assert weights < 1e-5 and losses < 1e-5


def test_with_batch_normalization_they_do_not(tmp_path):
    """The same ResNet but for its norm: its statistics are those of a part."""
    resnet = "classifier", "MODEL.BACKBONE.NAME", "build_cifar_resnet_backbone", "ISO.ORTHO.COEFF", "0.0"
    resnet += "MODEL.RESNETS.DEPTH", "8", "MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.RESNETS.NORM"
    weights, losses = apart(tmp_path / "none", 4, *resnet, "")
    assert weights < 1e-5 and losses < 1e-5
    weights, losses = apart(tmp_path / "BN", 4, *resnet, "BN")
    assert weights > 1e-2 and losses > 1e-2


def test_the_penalty_is_computed_once_a_step(tmp_path, toy_data, monkeypatch):
    trainer = Trainer(toy_config(tmp_path, "ISO.ORTHO.COEFF", 0.1, "SOLVER.ACCUMULATE", 2))
    calls, penalty = [], ModelPenalty.__call__
    monkeypatch.setattr(ModelPenalty, "__call__", lambda self: calls.append(trainer.iter) or penalty(self))
    trainer.train()
    assert calls == [0, 1, 2]


def test_the_penalty_beside_a_loss_that_is_one_tensor():
    image, weights = torch.full((3, 16, 16), 100, dtype=torch.uint8), []
    for size, make in ((4, SimpleTrainer), (2, partial(AccumulatingTrainer, parts=2))):
        model = toy_with_random_weights(tensor_loss=True)
        data = [[{"image": image}] * size] * 4
        trainer = make(model, data, torch.optim.SGD(model.parameters(), lr=1e-4))
        trainer.register_hooks([OrthogonalityLossHook(0.1)])
        trainer.train(0, 2)
        weights.append(model.state_dict())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-5)


def test_one_step_by_hand():
    """w = 1, loss (w x)^2 as one tensor, x = 1/4 and 3/4: gradient (1/8 + 9/8) / 2."""

    class Square(nn.Linear):
        def forward(self, x):
            return super().forward(x).float().square().mean()

    for precision in (None, torch.bfloat16, torch.float16):
        model = Square(1, 1, bias=False)
        nn.init.constant_(model.weight, 1.0)
        model.weight.grad = torch.full((1, 1), 7.0)  # of a step before
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        data = [torch.tensor([[0.25]]), torch.tensor([[0.75]])]
        trainer = AccumulatingTrainer(model, data, optimizer, 2, precision)
        with EventStorage(0) as trainer.storage:
            trainer.iter = 0
            trainer.run_step()
            assert trainer.storage.latest()["total_loss"][0] == pytest.approx((1 / 16 + 9 / 16) / 2)
        assert model.weight.item() == pytest.approx(1 - 0.01 * 0.625)
        other = AccumulatingTrainer(model, data, optimizer, 2, torch.float16)
        other.load_state_dict(trainer.state_dict())
        scale = trainer.grad_scaler.state_dict() or {"scale": 2.0**16}
        assert other.grad_scaler.state_dict()["scale"] == scale["scale"]


def test_parts_of_batches():
    batch = {"images": torch.arange(6).view(6, 1), "labels": torch.arange(6)}
    parts = list(parts_of([batch], 3))
    assert [part["labels"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert parts[1]["images"].tolist() == [[2], [3]]
    assert list(parts_of([[1, 2], [3, 4]], 2)) == [[1], [2], [3], [4]]
    with pytest.raises(ValueError, match=r"SOLVER\.ACCUMULATE 2 does not divide 3, the images"):
        next(parts_of([[1, 2, 3]], 2))


def test_parts_that_do_not_divide_the_batch_are_named_before_training(tmp_path, toy_data):
    for parts in (3, 0):
        with pytest.raises(
            ValueError, match=rf"SOLVER\.ACCUMULATE .* got {parts} parts of SOLVER\.IMS_PER_BATCH 2 in 1 pro"
        ):
            Trainer(toy_config(tmp_path, "SOLVER.ACCUMULATE", parts))


def test_a_divergence_is_looked_for_in_the_part_where_it_is(tmp_path, toy_data):
    trainer = Trainer(toy_config(tmp_path, "SOLVER.ACCUMULATE", 2, "DATASETS.TEST", ()))
    seen = []
    trainer.model.register_forward_hook(
        lambda *_: seen.append(1) or {"loss_toy": _[2]["loss_toy"] * torch.nan}
    )
    with pytest.raises(FloatingPointError, match="loss_toy = nan"):
        trainer.train()
    assert len(trainer._batches.last) == 1
    assert len(seen) == 3  # two parts, and one more


def test_after_an_error_in_a_part_the_penalty_counts_for_the_diagnosis(tmp_path, toy_data):
    """Detectron2 raises one itself where boxes are not finite."""
    trainer = Trainer(
        toy_config(tmp_path, "SOLVER.ACCUMULATE", 2, "DATASETS.TEST", (), "ISO.ORTHO.COEFF", 1e39)
    )
    raised = []

    def once(*_):
        if not raised:
            raised.append(1)
            raise FloatingPointError("boxes")

    trainer.model.register_forward_pre_hook(once)
    with pytest.raises(FloatingPointError, match=r"loss_ortho = inf.* What was seen first: boxes"):
        trainer.train()


def test_an_interrupted_training_goes_on_exactly(tmp_path, toy_data, usual_handlers):
    opts = "SOLVER.MAX_ITER", 6, "SOLVER.ACCUMULATE", 2, "ISO.ORTHO.COEFF", 0.5
    opts += "ISO.ORTHO.MODE", "exact", "ISO.ORTHO.FRACTION", 0.4, "SOLVER.EMA", 0.9
    trained(tmp_path / "whole", *opts)
    with pytest.raises(SystemExit):
        trained(tmp_path / "parts", *opts, hook=At(2, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    assert trained(tmp_path / "parts", *opts).start_iter == 4
    assert kills.digest(tmp_path / "parts") == kills.digest(tmp_path / "whole")


def test_activations_take_the_memory_of_one_part(tmp_path, toy_data):
    """The most bytes of saved tensors at a time, weights aside."""

    class Kept:
        now = most = 0

        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.nbytes * (not isinstance(tensor, nn.Parameter))
            Kept.now += self.size
            Kept.most = max(Kept.most, Kept.now)

        def __del__(self):
            Kept.now -= self.size

    most = {}
    for parts in (1, 4):
        trainer = Trainer(
            toy_config(tmp_path / str(parts), "SOLVER.ACCUMULATE", parts, "SOLVER.IMS_PER_BATCH", 4)
        )
        trainer._hooks, trainer.max_iter, Kept.most = [], 1, 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            trainer.train()
        most[parts] = Kept.most
    assert most[4] == pytest.approx(most[1] / 4, rel=0.01)
