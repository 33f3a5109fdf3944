from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from experiments.models import input_size, parameters_and_flops, write_backbone
from iso_d2.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[2]
NARROW = ["MODEL.RESNETS.DEPTH", "20", "MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.DEVICE", "cpu"]
RESIZE = "[['Resize', {'height': 96, 'width': 96}]]"


def test_cost_of_a_resnet_20():
    cfg = load_config(ROOT / "configs/cifar/resnet18_nonorm_cifar10.yaml", NARROW)
    parameters, flops = parameters_and_flops(cfg)
    # 3x3 convolutions (stem, then stages with a 1x1 projection), and the linear layer with its bias
    stage2 = 32 * 16 * 9 + 32 * 16 + 5 * 32 * 32 * 9
    stage3 = 64 * 32 * 9 + 64 * 32 + 5 * 64 * 64 * 9
    assert parameters == 16 * 3 * 9 + 6 * 16 * 16 * 9 + stage2 + stage3 + 10 * 64 + 10
    multiply_adds = 1024 * (16 * 3 * 9 + 6 * 16 * 16 * 9) + 256 * stage2 + 64 * stage3 + 10 * 64
    assert flops == multiply_adds + 64 * 64  # fvcore counts the pooling of 64 maps of 8x8, too


def test_the_cost_of_a_detector_depends_on_the_image_and_is_not_given():
    cfg = load_config(
        "configs/risonet18_frcnn_fpn.yaml", ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "16"]
    )
    parameters, flops = parameters_and_flops(cfg)
    assert parameters > 11_000_000 and flops is None
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    ("config", "options", "side"),
    [
        ("cifar/resnet18_cifar10.yaml", (), 32),
        ("cifar/resnet18_cifar10.yaml", ("INPUT.ALBUMENTATIONS.TEST", RESIZE), 32),  # in memory: no pipeline
        ("cifar/resnet18_cifar10.yaml", ("INPUT.IN_MEMORY", False, "INPUT.ALBUMENTATIONS.TEST", RESIZE), 96),
        ("isounet_lgg.yaml", ("DATASETS.TRAIN", "('lgg_image_train',)"), 224),
        ("quick/isounet_narrow_lgg.yaml", (), 112),
        ("quick/risonet18_frcnn_shapes.yaml", (), None),
    ],
)
def test_the_size_of_the_images(config, options, side):
    assert input_size(load_config(ROOT / "configs" / config, options)) == side


def test_a_backbone_is_written_without_classifier_and_prefix(tmp_path):
    model = build_model(load_config(ROOT / "configs/cifar/resnet18_nonorm_cifar10.yaml", NARROW))
    torch.save({"model": model.state_dict(), "iteration": 3}, tmp_path / "model_final.pth")
    write_backbone(tmp_path / "model_final.pth", tmp_path / "backbone.pth")
    content = torch.load(tmp_path / "backbone.pth", weights_only=True)
    assert content["matching_heuristics"]
    assert set(content["model"]) == set(model.backbone.state_dict())
    weight = content["model"]["res2.0.conv1.weight"]
    torch.testing.assert_close(weight, model.backbone.res2[0].conv1.weight.data)
