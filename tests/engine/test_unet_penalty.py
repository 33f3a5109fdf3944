"""Which layers of a UNet the penalty takes, and that it starts at nothing."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from engine_toys import toy_batches
from test_orthogonality_hook import penalised, train
from torch import nn

from iso_d2.engine import OrthogonalityLossHook
from iso_d2.modeling import UNet


class UNetAndMore(nn.Module):
    """A UNet, one convolution beside it, and the mean logit as the loss."""

    def __init__(self, **options):
        super().__init__()
        self.unet = UNet(base_channels=4, depth=3, **options)
        self.beside = nn.Conv2d(1, 1, 3)

    def forward(self, batch):
        images = torch.stack([x["image"].float() for x in batch]) / 255
        return {"loss_toy": self.beside(self.unet(images)).mean()}


@pytest.mark.parametrize("options", [{}, {"isometric": False, "norm": "BN"}])
def test_default_takes_a_unet_but_its_first_layer_and_its_output(options):
    blocks = ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]
    expected = {f"unet.{block}.conv{i}" for block in blocks for i in (1, 2)} | {"unet.ups.0", "unet.ups.1"}
    assert set(penalised(UNetAndMore(**options))) == expected - {"unet.encoder.0.conv1"}
    one_channel = UNetAndMore(in_channels=1, up="nearest", **options)
    hook = OrthogonalityLossHook(0.1)
    trainer = SimpleTrainer(one_channel, toy_batches(), torch.optim.SGD(one_channel.parameters(), lr=0.1))
    trainer.register_hooks([hook])
    hook.before_train()
    assert set(hook._convs) == expected - {"unet.ups.0", "unet.ups.1"} | {
        "unet.ups.0.conv",
        "unet.ups.1.conv",
    }


@pytest.mark.parametrize("up_kernel", [2, 6])
def test_isometric_unet_starts_without_penalty(up_kernel):
    (losses,) = train(UNetAndMore(up_kernel=up_kernel), OrthogonalityLossHook(1.0, mode="exact"), steps=1)
    assert losses["ortho/total"] < 1e-3
