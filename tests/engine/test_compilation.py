import copy
import functools
import shutil

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from engine_toys import ToyModel, toy_batches, toy_config
from torch import nn

from iso_d2.engine import CompileHook, IsometryHook, Trainer, compilation
from iso_d2.isometry import ScaledConv2d, SharedScale, SReLU
from iso_d2.modeling import ISONet


class Tiny(nn.Module):
    """One convolution with a scale, and an SReLU."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = ScaledConv2d(3, 4, 3, gain=1.5)
        self.scale = SharedScale(0.5)
        self.srelu = SReLU(4)

    def forward(self, x):
        return {"res2": self.srelu(self.conv(x, self.scale.scale))}


class Look(HookBase):
    """Whether each step runs the network compiled."""

    def __init__(self):
        self.compiled = []

    def before_train(self):
        # after CompileHook's own
        self.trainer.model.register_forward_pre_hook(
            lambda model, _: self.compiled.append("forward" in vars(model.backbone))
        )


def train(network, *hooks, steps=3):
    model, look = ToyModel(network), Look()
    trainer = SimpleTrainer(model, toy_batches(), torch.optim.SGD(model.parameters(), lr=0.5))
    trainer.register_hooks([*hooks, look])
    trainer.train(0, steps)
    assert "forward" not in vars(network)
    return model.state_dict(), look.compiled


@pytest.fixture
def compilations(monkeypatch):
    """torch.compile without a compiler: a count of the calls of what it returns."""
    calls = []

    def compile_(function, **options):
        def compiled(*args):
            calls.append(options)
            return function(*args)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_steps_are_those_of_the_network():
    expected, _ = train(Tiny())
    found, compiled = train(Tiny(), CompileHook())
    assert compiled == [False, True, True]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert not torch.equal(found["backbone.conv.weight"], Tiny().conv.weight)


def test_an_isonet_is_one_graph_and_has_the_gradients_of_its_modules():
    net = ISONet(8, True, stem="cifar", num_classes=3, signal="scaled", whiten=False)
    compiled = torch.compile(net.forward, backend="aot_eager", fullgraph=True)
    x, gradients = torch.randn(2, 3, 8, 8), []
    for forward in (net.forward, compiled):
        net.zero_grad()
        forward(x)["linear"].square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for ours, other in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_steps_with_hooks_on_a_module_are_not_compiled(compilations):
    _, compiled = train(Tiny(), IsometryHook(2), CompileHook(mode="max-autotune"), steps=4)
    assert compiled == [False, True, False, True]
    assert compilations == [{"mode": "max-autotune"}] * 2


def test_without_a_compiler_the_training_goes_on(log, monkeypatch):
    def compile_(function):
        def compiled(*args):
            raise RuntimeError("Failed to find C++ compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    expected, _ = train(Tiny())
    found, compiled = train(Tiny(), CompileHook())
    assert compiled == [False, True, False]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (message,) = {r.getMessage() for r in log.records if r.name == compilation.__name__}
    assert "goes on without it. The cause: Failed to find C++ compiler" in message


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, batch):
        return self.linear(torch.ones(1)).sum()


def test_a_model_without_backbone(log):
    model = Other()
    trainer = SimpleTrainer(model, toy_batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([CompileHook()])
    trainer.train(0, 2)
    assert "Other has neither `unet` nor `backbone`" in log.text


def test_the_config_chooses_and_checkpoints_stay(toy_data, tmp_path, compilations):
    keys = []
    for compiled in (False, True):
        trainer = Trainer(toy_config(tmp_path / str(compiled), "MODEL.COMPILE", compiled))
        trainer.resume_or_load(resume=False)
        trainer.train()
        keys.append(list(torch.load(tmp_path / str(compiled) / "model_final.pth")["model"]))
    assert keys[0] == keys[1]
    assert len(compilations) == 2  # of three steps; evaluation runs as usual


def test_a_copy_made_between_steps_has_its_own_weights(compilations):
    copies = []

    class Copy(HookBase):
        def after_step(self):
            copies.append(copy.deepcopy(self.trainer.model.backbone))

    train(Tiny(), Copy(), CompileHook())
    image = torch.ones(1, 3, 4, 4)
    before = copies[-1](image)["res2"]
    copies[-1].conv.weight.data.zero_()
    assert not torch.equal(copies[-1](image)["res2"], before)


def test_a_forward_of_the_users_own_stays(log, compilations):
    network = Tiny()
    network.forward = functools.partial(Tiny.forward, network)
    model = ToyModel(network)
    trainer = SimpleTrainer(model, toy_batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([CompileHook()])
    trainer.train(0, 3)
    assert "forward" in vars(network)
    assert not compilations
    assert "a network with another `forward`, nothing is compiled" in log.text
