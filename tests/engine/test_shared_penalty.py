"""The penalty divided among the processes of a data-parallel training."""

import engine_toys
import pytest
import torch
from detectron2.engine import launch
from torch import nn

from iso_d2.engine import OrthogonalityLossHook
from iso_d2.engine.hooks import _share
from iso_d2.isometry import orthogonality_multiply_adds


@pytest.mark.parametrize(("tensor_loss", "unused"), [(False, False), (True, False), (False, True)])
def test_two_processes_share_the_layers_and_train_as_one_does(tmp_path, tensor_loss, unused):
    """`unused`: with a layer whose only gradient is that of the penalty, in one process."""
    arguments = str(tmp_path), tensor_loss, unused
    launch(engine_toys.penalise_in_one_process, 2, dist_url="auto", args=arguments)
    first, second = (torch.load(tmp_path / f"penalised{rank}.pth") for rank in range(2))
    alone = engine_toys.penalised_training(
        engine_toys.toy_with_random_weights(tensor_loss, unused), OrthogonalityLossHook(0.1, log_period=1)
    )
    # every layer once, and neither process has them all
    assert sorted(first["layers"] + second["layers"]) == sorted(alone["layers"])
    assert first["layers"] and second["layers"]
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight)
        torch.testing.assert_close(second["weights"][name], weight)
    assert set(first["written"]) == set(alone["written"])
    for name, value in alone["written"].items():
        if name == "loss_ortho" or name.startswith("ortho/"):
            assert first["written"][name] == pytest.approx(value, rel=1e-5)


def test_shares_are_even_and_the_same_in_every_process():
    torch.manual_seed(0)
    convs = {f"conv{i}": nn.Conv2d(4 + i, 4 + i, 3, bias=False) for i in range(12)}
    cost = {name: orthogonality_multiply_adds(conv) for name, conv in convs.items()}
    shares = [_share(convs, "paper", process, 3) for process in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(convs)
    loads = [sum(cost[name] for name in share) for share in shares]
    assert max(loads) < 1.1 * sum(cost.values()) / 3


def test_more_processes_than_layers():
    convs = {"conv": nn.Conv2d(2, 2, 1)}
    assert [len(_share(convs, "paper", process, 3)) for process in range(3)] == [1, 0, 0]
