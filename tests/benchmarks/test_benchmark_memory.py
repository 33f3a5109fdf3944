import pytest
import torch
from torch import nn

from benchmarks.memory import MIB, TARGET, measure_memory, saved_bytes
from benchmarks.networks import isonet, plain_form_, resnet
from benchmarks.options import Options
from iso_d2.isometry import SReLU

FLOAT = 4
TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


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
    assert saved_bytes(ours, x) == pixels * FLOAT
    assert saved_bytes(plain_form_(ours), x) == 2 * pixels * FLOAT


def test_checkpointed_stages_of_an_isonet_keep_their_inputs_alone():
    net = isonet(TINY, checkpoint_stages=("res2", "res3", "res4"))
    # the stem's output, which its SReLU keeps anyway, and those of res2 and res3
    pixels = 2 * (16 * 16 * 16 + 16 * 16 * 16 + 32 * 8 * 8)
    assert saved_bytes(net, TINY.images(), net.stage_names) == pixels * FLOAT


def test_memory_part_is_the_same_twice_and_counts_checkpointing():
    (table,), (again,) = measure_memory(TINY, 0), measure_memory(TINY, 0)
    assert table == again
    rows = {row["network"]: row["saved, MiB"] for row in table.rows}
    assert rows["R-ISONet-8"] < rows["R-ISONet-8, plain: relu(x - b) + b, x + s * f"]
    assert (
        rows["R-ISONet-8"]
        > rows["R-ISONet-8, checkpointed res2"]
        > rows["R-ISONet-8, checkpointed res2, res3, res4"]
    )
    assert [row["network"] for row in table.rows if row["over BN"] == 1] == ["ResNet-8 BN"]


def test_isonet_keeps_at_most_six_tenths_of_batch_norms_bytes():
    options = Options()
    images = options.images()
    ours, norm = (saved_bytes(net, images) for net in (isonet(options), resnet(options, "BN")))
    assert ours / norm <= TARGET
    assert norm == pytest.approx(327.9 * MIB, rel=0.01)
