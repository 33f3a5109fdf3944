"""The residual sum, the scale in the weight, checkpointing, against plain formulas."""

import pytest
import torch
from off_start import random_
from torch import nn
from torch.nn import functional as F

from iso_d2.modeling import IsoBlock, ISONet, fold_scales_
from iso_d2.modeling.signal import Signal


def plain(block, x):
    """The block by the formula, every operation on its own."""

    def srelu(module, x):
        b = module.threshold.view(-1, 1, 1)
        return torch.relu(x - b) + b

    out = x
    for module in block.branch:
        out = module(out) if isinstance(module, nn.Conv2d) else srelu(module, out)
    if block.scale is not None:
        out = (x if block.shortcut is None else block.shortcut(x)) + block.scale.scale * out
    return srelu(block.srelu, out)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("neck", [None, 3])
@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "dilation"), [(6, 6, 1, 1), (6, 8, 2, 1), (8, 5, 1, 2)]
)
def test_block_and_its_gradients_are_those_of_the_formula(residual, neck, inputs, outputs, stride, dilation):
    signal = Signal(srelu_init=-0.2)
    block = random_(IsoBlock(inputs, outputs, stride, residual, neck, dilation, signal=signal)).double()
    leaves = [torch.randn(2, inputs, 9, 7, dtype=torch.float64, requires_grad=True), *block.parameters()]
    cotangent = torch.randn_like(plain(block, leaves[0]))
    for ours, formula in zip(
        (block(leaves[0]), *torch.autograd.grad(block(leaves[0]), leaves, cotangent)),
        (plain(block, leaves[0]), *torch.autograd.grad(plain(block, leaves[0]), leaves, cotangent)),
        strict=True,
    ):
        torch.testing.assert_close(ours, formula)


@pytest.mark.parametrize("training", [True, False])
def test_a_block_leaves_its_input_alone(training):
    block, x = random_(IsoBlock(4, 4, 1, True)), torch.randn(2, 4, 5, 5)
    before = x.clone()
    with torch.set_grad_enabled(training):
        block(x)
    assert torch.equal(x, before)


def test_a_block_keeps_channels_last():
    block = random_(IsoBlock(8, 8, 1, True)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    assert block(x).is_contiguous(memory_format=torch.channels_last)


def kept(module, x):
    """Bytes that a training step keeps for backward, without parameters and input."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), x)}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x).sum().backward()
    return sum(storages.values())


def test_a_block_keeps_its_activations_once_and_one_scaled_weight():
    block, x = random_(IsoBlock(16, 16, 1, True, bottleneck_channels=4)), torch.randn(2, 16, 10, 10)
    pixels = 2 * 10 * 10 * 4
    # the outputs of two inner SReLUs and of the last one; s * W of the last convolution
    assert kept(block, x) == (4 + 4 + 16) * pixels + 16 * 4 * 4


def deep(**arguments):
    torch.manual_seed(1)
    return random_(ISONet(20, True, stem="cifar", out_features=["res3", "res4"], **arguments)).double()


def test_checkpointing_changes_no_value_and_no_gradient():
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    results = []
    for stages in ((), ("res2", "res4")):
        net = deep(checkpoint_stages=stages)
        out = net(x)
        (out["res3"].square().sum() + out["res4"].square().sum()).backward()
        results.append([*out.values(), *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_checkpointing_keeps_less(monkeypatch):
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    class Last(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)["res4"]

    whole, two, all_three = (
        kept(Last(deep(checkpoint_stages=stages)), x)
        for stages in ((), ("res2", "res3"), ("res2", "res3", "res4"))
    )
    assert all_three < two < whole


def test_checkpointing_is_off_in_evaluation(monkeypatch):
    net = deep(checkpoint_stages=("res2",)).eval()
    monkeypatch.setattr("iso_d2.modeling.blocks.checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    net(torch.randn(1, 3, 16, 16, dtype=torch.float64))


def test_checkpointing_names_the_stage_it_does_not_know():
    message = (
        "checkpoint_stages must be some of res2, res3, res4, which out_features res3, res4 need, got res7"
    )
    with pytest.raises(ValueError, match=message):
        deep(checkpoint_stages=("res7",))


def test_checkpointing_names_the_stage_that_is_not_built():
    with pytest.raises(ValueError, match="some of res2, which out_features res2 need, got res2, res5"):
        ISONet(18, True, out_features=["res2"], checkpoint_stages=("res2", "res5"))


def test_hooks_of_the_last_convolution_are_called_and_change_no_value():
    block = random_(IsoBlock(4, 8, 2, True), scale=0.25).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = block(x)
    expected_grads = torch.autograd.grad(expected.square().sum(), list(block.parameters()))
    output_of_branch = 0.25 * block.branch(x).detach()  # the scale is in the weight
    seen = []
    # a clone: the SReLU works in place
    block.branch[-1].register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach().clone())
    )
    for conv in (block.branch[0], block.branch[-1]):
        conv.register_full_backward_hook(lambda module, grad_inputs, grad_outputs: seen.append(None))
    out = block(x)
    torch.testing.assert_close(seen, [output_of_branch], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(out.square().sum(), list(block.parameters()))
    assert len(seen) == 3
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


def test_another_module_in_place_of_the_last_convolution_is_called():
    block = random_(IsoBlock(4, 4, 1, True), scale=0.25)
    block.branch[-1] = nn.Conv2d(4, 4, 3, padding=1)  # with a bias
    x = torch.randn(2, 4, 6, 6)
    expected = torch.maximum(x + 0.25 * block.branch(x), block.srelu.threshold.view(-1, 1, 1))
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(fold_scales_(block)(x), expected)


def test_a_convolution_of_circular_padding_keeps_it():
    block = random_(IsoBlock(4, 4, 1, True), scale=0.25)
    weight = block.branch[-1].weight
    block.branch[-1] = nn.Conv2d(4, 4, 3, padding=1, bias=False, padding_mode="circular")
    block.branch[-1].weight = weight
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        inner = F.pad(block.branch[:-1](x), (1, 1, 1, 1), mode="circular")
        expected = torch.maximum(x + 0.25 * F.conv2d(inner, weight), block.srelu.threshold.view(-1, 1, 1))
        torch.testing.assert_close(block(x), expected)
        torch.testing.assert_close(fold_scales_(block)(x), expected)
