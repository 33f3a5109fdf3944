import pytest
import torch
from torch import nn

from iso_d2.benchmark import Options, saved_bytes
from iso_d2.benchmark.networks import PlainBlock, PlainSReLU, isonet, plain_form_
from iso_d2.isometry import SReLU
from iso_d2.modeling import IsoBlock

FLOAT = 4


def test_convolution_keeps_nothing_but_its_input_and_weight_which_do_not_count():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert saved_bytes(conv, torch.randn(2, 3, 8, 8)) == 0


def test_output_that_two_operations_keep_counts_once():
    # the ReLU keeps its output for itself, the second convolution the same tensor as its input
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1))
    assert saved_bytes(net, torch.randn(2, 3, 8, 8)) == 2 * 5 * 8 * 8 * FLOAT


def test_batch_norm_keeps_its_input_and_two_numbers_a_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
    pixels = 2 * 5 * 8 * 8
    assert saved_bytes(net, torch.randn(2, 3, 8, 8)) == (2 * pixels + 2 * 5) * FLOAT


def test_frozen_net_keeps_nothing():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1)).requires_grad_(False)
    assert saved_bytes(net, torch.randn(2, 3, 8, 8)) == 0


def test_whole_storage_of_a_view_counts():
    class Half(nn.Module):
        def forward(self, x):
            return (x * 1.0)[:, :1].square()

    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    assert saved_bytes(Half(), x) == 2 * 4 * 3 * 3 * FLOAT


def test_input_of_a_checkpointed_module_counts_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.stage = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))

        def forward(self, x):
            x = self.first(x)
            return torch.utils.checkpoint.checkpoint(lambda: self.stage(x), use_reentrant=False)

    x = torch.randn(2, 3, 8, 8)
    assert saved_bytes(Net(), x, checkpointed=("stage",)) == 2 * 4 * 8 * 8 * FLOAT


def test_srelu_keeps_one_tensor_and_the_plain_form_one_of_its_own_too():
    x = torch.randn(2, 3, 8, 8)
    pixels = 2 * 5 * 8 * 8
    ours = nn.Sequential(nn.Conv2d(3, 5, 1), SReLU(5, inplace=True), nn.Conv2d(5, 4, 1))
    plain = nn.Sequential(nn.Conv2d(3, 5, 1), PlainSReLU(ours[1]), nn.Conv2d(5, 4, 1))
    assert saved_bytes(ours, x) == pixels * FLOAT
    assert saved_bytes(plain, x) == 2 * pixels * FLOAT


def test_checkpointed_stages_of_an_isonet_keep_their_inputs_alone():
    options = Options(depth=8, batch=2, size=(16, 16))
    net = isonet(options, checkpoint_stages=("res2", "res3", "res4"))
    # the stem's output, which its SReLU keeps anyway, and those of res2 and res3
    pixels = 2 * (16 * 16 * 16 + 16 * 16 * 16 + 32 * 8 * 8)
    assert saved_bytes(net, options.images(), net.stage_names) == pixels * FLOAT


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
    assert all(isinstance(block, PlainBlock) for block in plain)
    assert not any(isinstance(module, SReLU) for module in plain.modules())
    again = plain(x)
    torch.testing.assert_close(again, out)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), parameters), expected)
