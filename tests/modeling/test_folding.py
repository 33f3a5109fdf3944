import functools

import detectron2.layers
import pytest
import torch
from off_start import random_
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from iso_d2.modeling import IsoBlock, ISONet, UNet, fold_scales_


def two_blocks():
    return nn.Sequential(*(random_(IsoBlock(4, 4, 1, True), scale=0.25) for _ in range(2)))


def refused(blocks, message):
    """The fold raises, and leaves the first of the blocks, which could be folded, as it was."""
    first = blocks[0]
    weight = first.branch[-1].weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        fold_scales_(blocks)
    assert torch.equal(first.branch[-1].weight, weight) and first.scale is not None


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            nn.utils.parametrizations.weight_norm,
            "got ParametrizedScaledConv2d: remove its parametrization first",
        ),
        (nn.utils.weight_norm, "with the parameters bias, metric, weight_g, weight_v: remove"),
        (
            lambda conv: prune.random_unstructured(conv, "weight", 0.5),
            "with the parameters bias, metric, weight_orig: remove its weight norm or pruning",
        ),
    ],
)
def test_a_weight_that_is_made_of_others_is_not_folded(change, message):
    blocks = two_blocks()
    change(blocks[1].branch[-1])
    refused(blocks, message)


def test_a_convolution_with_a_norm_is_not_folded():
    blocks = two_blocks()
    normed = detectron2.layers.Conv2d(4, 4, 3, padding=1, bias=False, norm=nn.BatchNorm2d(4))
    blocks[1].branch[-1] = normed
    refused(blocks, "got Conv2d: remove its parametrization")


@pytest.mark.parametrize("position", [0, -1])
def test_a_last_weight_that_is_used_elsewhere_is_not_folded(position):
    blocks = two_blocks()
    blocks[1].branch[position].weight = blocks[0].branch[-1].weight
    refused(blocks, "used elsewhere in the model")


def test_a_last_convolution_that_is_used_elsewhere_is_not_folded():
    blocks = two_blocks()
    blocks.append(blocks[0].branch[-1])
    refused(blocks, "used elsewhere in the model")


def test_a_block_of_two_names_is_folded_once():
    block = random_(IsoBlock(4, 4, 1, True), scale=0.25)
    weight = block.branch[-1].weight.detach().clone()
    fold_scales_(nn.ModuleDict({"backbone": block, "alias": nn.Sequential(block)}))
    assert torch.equal(block.branch[-1].weight, 0.25 * weight)


def test_the_fold_gives_the_same_outputs_without_scales():
    net = random_(ISONet(50, True, out_features=["res2", "res5"])).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x)
        assert fold_scales_(net) is net
        after = net(x)
    assert not [name for name in net.state_dict() if "scale" in name]
    for name in before:
        torch.testing.assert_close(
            after[name], before[name], rtol=1e-5, atol=1e-5 * before[name].abs().max().item()
        )


def test_the_fold_multiplies_the_last_weight_once():
    block = random_(IsoBlock(4, 4, 1, True), scale=0.25)
    weight = block.branch[-1].weight.detach().clone()
    fold_scales_(nn.Sequential(block))
    fold_scales_(block)
    assert torch.equal(block.branch[-1].weight, 0.25 * weight)
    x = torch.randn(1, 4, 5, 5)
    inner = block.branch[:-1](x)
    expected = x + F.conv2d(inner, 0.25 * weight, padding=1)
    torch.testing.assert_close(block(x), torch.maximum(expected, block.srelu.threshold.view(-1, 1, 1)))


def test_the_fold_leaves_isonet_alone():
    net = ISONet(18, False, out_features=["res2"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fold_scales_(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ISONet(8, True, stem="cifar"), r"res2\.0\.scale\.scale of the state dict has no place"),
        (lambda: UNet(base_channels=2, depth=2, metric=True), r"encoder\.0\.conv1\.metric of the state dict"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_folded_net_refuses_weights_that_are_not_folded(make, message, strict):
    folded, unfolded = fold_scales_(make()), make().state_dict()
    with pytest.raises(ValueError, match=message + ".* new model"):
        folded.load_state_dict(unfolded, strict=strict)


def test_a_folded_net_takes_gains_and_folded_weights():
    make = functools.partial(ISONet, 8, False, stem="cifar", signal="scaled", whiten=False)
    x = torch.randn(1, 3, 8, 8)
    net, other = make(), make()
    expected = net(x)["res4"]
    folded = fold_scales_(make())
    folded.load_state_dict(net.state_dict())
    torch.testing.assert_close(folded(x)["res4"], expected)
    other.load_state_dict(fold_scales_(net).state_dict())
    torch.testing.assert_close(other(x)["res4"], expected, rtol=1e-5, atol=1e-6)
