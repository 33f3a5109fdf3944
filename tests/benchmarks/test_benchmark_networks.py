import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.networks import (
    PlainBlock,
    isonet,
    model_penalty,
    penalised_convs,
    plain_form_,
    resnet,
    training_step,
)
from benchmarks.options import Options
from benchmarks.penalty import paper_loss
from benchmarks.scaling import PenaltyAlone
from iso_d2.engine.setup import load_config
from iso_d2.isometry import SReLU
from iso_d2.modeling import IsoBlock

TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


def test_frozen_batch_norm_has_the_statistics_of_the_images():
    frozen, norm = resnet(TINY, "FrozenBN"), resnet(TINY, "BN")
    images = TINY.images()
    torch.testing.assert_close(frozen(images), norm.train()(images), rtol=1e-3, atol=1e-4)


def test_training_step_leaves_weights_changed_by_the_optimizer_and_no_gradients():
    net, images = isonet(TINY), TINY.images()
    before = net.stem.conv.weight.detach().clone()
    training_step(net, TINY, images)()
    assert torch.equal(net.stem.conv.weight, before)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    training_step(net, TINY, images, optimizer, lambda: F.mse_loss(net.stem.conv.weight, before + 1))()
    assert not torch.equal(net.stem.conv.weight, before)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("residual", [True, False])
def test_plain_form_gives_the_same_values_and_gradients(residual):
    torch.manual_seed(0)
    net = nn.Sequential(IsoBlock(4, 8, 2, residual), IsoBlock(8, 8, 1, residual))
    if residual:
        for block in net:
            nn.init.constant_(block.scale.scale, 0.3)
    x = torch.randn(2, 4, 8, 8)
    out = net(x)
    expected = torch.autograd.grad(out.square().sum(), list(net.parameters()))
    parameters = list(net.parameters())
    plain = plain_form_(net)
    assert all(type(block) is PlainBlock for block in plain)
    assert not any(type(module) is SReLU for module in plain.modules())
    again = plain(x)
    torch.testing.assert_close(again, out)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), parameters), expected)


def test_layers_are_those_that_the_hook_of_the_trainer_takes():
    net = isonet(TINY)
    model = PenaltyAlone(net)
    model.penalty = model_penalty(model, load_config())
    loss = model().item()
    expected = sum(paper_loss(c.weight, c.stride[0]).item() for c in penalised_convs(net))
    assert loss == pytest.approx(1e-4 * expected, rel=1e-4)
    assert loss > 1e-6  # kernels are no deltas any more
