import pytest
import torch
from torch import nn

from benchmarks.inference import fold_norms_, folded, measure_inference
from benchmarks.networks import resnet
from benchmarks.options import Options

TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


def test_inference_part_compares_the_folded_net():
    (table,) = measure_inference(TINY, 0)
    assert [row["network"] for row in table.rows] == [
        "R-ISONet-8 folded",
        "R-ISONet-8",
        "ResNet-8 BN folded",
        "ResNet-8 BN",
        "ResNet-8 FrozenBN",
    ]


def test_a_fold_that_changes_features_is_an_error(monkeypatch):
    def wrong(net):
        with torch.no_grad():
            next(net.parameters()).mul_(1.1)
        return net

    for fold in ("fold_scales_", "fold_norms_"):
        with monkeypatch.context() as patch:
            patch.setattr(f"benchmarks.inference.{fold}", wrong)
            with pytest.raises(RuntimeError, match=r"moves the features by .*, more than 1e-05"):
                measure_inference(TINY, 0)


def test_folded_batch_norms_are_gone_and_give_the_same_features():
    net, images = resnet(TINY, "BN"), TINY.images()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.uniform_(0.5, 1.5)
    copied, difference = folded(net.eval(), fold_norms_, images)
    assert norms and not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())
    assert all(norm in list(net.modules()) for norm in norms)  # the net itself is as it was
    torch.testing.assert_close(copied(images)["res4"], net(images)["res4"], rtol=1e-4, atol=1e-4)
    assert 0 < difference < 1e-5


def test_frozen_batch_norms_are_not_folded():
    net = resnet(TINY, "FrozenBN").eval()
    layers = list(net.modules())
    assert list(fold_norms_(net).modules()) == layers
