import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from iso_d2.engine.setup import load_config
from iso_d2.modeling import UNet


def small_unet(*opts):
    small = ["MODEL.UNET.BASE_CHANNELS", "4", "MODEL.UNET.DEPTH", "3", "MODEL.DEVICE", "cpu"]
    return build_model(load_config(opts=["MODEL.META_ARCHITECTURE", "UNetSegmentor", *small, *opts])).train()


def test_deep_supervision_halves_the_weight_of_each_coarser_level():
    plain = small_unet()
    model = small_unet("MODEL.UNET.DEEP_SUPERVISION", "True")
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["unet.coarse_outputs.0.weight", "unet.coarse_outputs.0.bias"]
    assert missing.unexpected_keys == []
    # the decoder has two levels, at half the size and in full; constant logits there stay so in full size
    nn.init.zeros_(model.unet.coarse_outputs["0"].weight)
    nn.init.constant_(model.unet.coarse_outputs["0"].bias, 1.5)
    data = {"images": torch.randint(256, (2, 3, 10, 7), dtype=torch.uint8)}
    data["labels"] = torch.randint(2, (2, 10, 7))
    p = torch.full((2, 1, 10, 7), 1.5).sigmoid()
    q = data["labels"][:, None]
    pixels = (1, 2, 3)
    coarse = 1 - (2 * (p * q).sum(pixels) + 1) / ((p * p).sum(pixels) + q.sum(pixels) + 1)
    (fine,), (found,) = plain(data).values(), model(data).values()
    torch.testing.assert_close(found, (2 * fine + coarse.mean()) / 3)
    torch.testing.assert_close(
        model.eval()({"images": data["images"]}), plain.eval()({"images": data["images"]})
    )
    found.backward()
    assert model.unet.coarse_outputs["0"].bias.grad.abs().item() > 0
    with pytest.raises(ValueError, match="needs depth 3 or more, got 2"):
        UNet(base_channels=2, depth=2, deep_supervision=True)


@pytest.mark.parametrize("autocast", [False, True])
def test_it_learns(autocast):
    torch.manual_seed(0)
    model = small_unet()
    labels = torch.zeros(4, 24, 24, dtype=torch.uint8)
    labels[:3, 6:14, 8:18] = 1  # the last one is empty
    images = torch.randint(100, (4, 3, 24, 24), dtype=torch.uint8) + 100 * labels[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            (loss,) = model({"images": images, "labels": labels}).values()
        loss.backward()
        optimizer.step()
        assert loss.dtype == torch.float32
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
