import pytest
import torch
from engine_toys import tiny_resnet
from torch import nn

from iso_d2.analysis import analyze, describe
from iso_d2.modeling import ISONet


def test_a_bare_network_is_measured_and_left_as_it_is():
    network = tiny_resnet(norm="BN")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = analyze(network, torch.rand(4, 3, 16, 16), calibrate=True)
    assert (result["network"], result["input"]) == ("", [4, 3, 16, 16])
    assert result["calibrated_norms"] == 8
    assert result["jacobian"][0]["stem"]["values"][0] > 0
    assert network.training
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="0 or more images, got -1"):
        analyze(network, torch.rand(1, 3, 16, 16), jacobian_images=-1)


def rows(text, name):
    return [line.split() for line in text.splitlines() if line.split()[:1] == [name]]


def test_tables():
    network = ISONet(8, True, stem="cifar", srelu_init=-2.0, scale_init=0.25)
    with torch.no_grad():
        network.res2[0].srelu.threshold.fill_(-3)
        network.res2[0].branch.conv1.weight.mul_(2)
    text = describe(analyze(network, torch.zeros(1, 3, 8, 8), jacobian_images=0))
    # a delta times two: the Gram is 4 times the delta, 1/2 (4 - 1)^2 for each of 16 channels
    layer = ["16x16x3x3", "1x1", "5x5", "2", "2", "2", "1", "72", "72"]
    assert rows(text, "res2.0.branch.conv1") == [["res2.0.branch.conv1", *layer]]
    depth, _ = rows(text, "stem"), rows(text, "res2.0")
    assert depth[0][-3:] == ["-2", "-2", "-2"]
    assert rows(text, "res2.0")[0][-4:] == ["-3", "-2.5", "-2", "0.25"]
    # zeros are clipped nowhere
    assert rows(text, "stem.srelu") == [["stem.srelu", "0", "0.00"]]
    assert "The network is linear (below 0.1% of the values clipped) at 7 of 7 SReLUs" in text
    assert "batch normalizations" not in text and "Centred" not in text


def test_centred_kernels_are_marked():
    network = ISONet(8, True, stem="cifar", signal="scaled", centred=True)
    result = analyze(network, torch.randn(1, 3, 8, 8), jacobian_images=0)
    centred = [name for name, layer in result["layers"].items() if layer["centred"]]
    assert centred and "stem.conv" not in centred
    text = describe(result)
    assert all(rows(text, name + "*") for name in centred)
    assert "* Centred (MODEL.ISONET.CENTRED): a constant image gives 0." in text
    for name in centred:
        weight = network.get_submodule(name).weight
        assert nn.functional.conv2d(torch.ones(1, *weight.shape[1:]), weight).abs().max() < 1e-5
        if result["layers"][name]["stride"] == [1, 1]:  # the others give half of what they read
            assert result["layers"][name]["isometry_error"] >= 1 - 1e-5
