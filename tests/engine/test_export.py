"""Networks in files give what they give in PyTorch, at sizes and batches that they were not traced with."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.layers import ShapeSpec
from PIL import Image
from torch import nn

from iso_d2.engine.export import export_model
from iso_d2.engine.exported import SUFFIXES, ExportedModel
from iso_d2.engine.predictor import Predictor
from iso_d2.engine.setup import load_config

FORMATS = [
    pytest.param("onnx", marks=pytest.mark.filterwarnings("ignore::DeprecationWarning")),
    "torchscript",
    "torch_export",
]
FPN = ["MODEL.ISONET.DEPTH", "18", "MODEL.FPN.OUT_CHANNELS", "8", "TEST.DETECTIONS_PER_IMAGE", "10"]
FPN += ["INPUT.FORMAT", "BGR"]
ROIS = ["MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ISONET.SIGNAL", "paper"]
MODELS = {
    "classifier": ("quick/risonet20_shapes_cls", ["MODEL.ISONET.DEPTH", "8"]),
    "unet": ("quick/isounet_phantom", ["MODEL.UNET.BASE_CHANNELS", "4", "MODEL.UNET.DEPTH", "3"]),
    "mask_rcnn": ("quick/risonet18_mask_rcnn_shapes", [*FPN, *ROIS]),
    "retinanet": ("risonet50_retinanet_fpn", [*FPN, "MODEL.RETINANET.NUM_CONVS", "1"]),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Function that gives the config of a model of MODELS, with a checkpoint of random weights."""
    configs = {}

    def config(name):
        if name not in configs:
            base, opts = MODELS[name]
            cfg = load_config(base, opts)
            torch.manual_seed(0)
            model = build_model(cfg)
            for key, parameter in model.named_parameters():
                if parameter.dim() > 1 and re.search(r"head|predictor|proposal|fpn", key):
                    nn.init.kaiming_normal_(parameter)
                if "cls_score" in key:
                    parameter.data *= 0.3  # scores that are not all 0 or 1
            folder = tmp_path_factory.mktemp(name)
            torch.save({"model": model.state_dict()}, folder / "model.pth")
            cfg.MODEL.WEIGHTS = str(folder / "model.pth")
            configs[name] = cfg
        return configs[name]

    return config


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Function that gives a model of MODELS in a file, and its config."""
    folder, files = tmp_path_factory.mktemp("exported"), {}

    def export(name, format):
        if format == "onnx":
            pytest.importorskip("onnx")
            pytest.importorskip("onnxruntime")
        file = folder / f"{name}{SUFFIXES[format]}"
        if file not in files:
            assert export_model(trained(name), format, file)[1] < 1e-4
            files[file] = ExportedModel(file)
        return files[file], trained(name)

    return export


def pixels(*shape, seed=1):
    return 255 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["classifier", "unet"])
@pytest.mark.parametrize("shape", [(1, 3, 40, 72), (5, 3, 32, 32)])
def test_batches(exported, name, format, shape):
    model, cfg = exported(name, format)
    with torch.no_grad():
        expected = Predictor(cfg).model({"images": pixels(*shape)})
    found = model.run(pixels(*shape))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4)
        assert value.std() > 1e-3  # it depends on the image


@pytest.mark.parametrize("format", FORMATS[:2])
def test_a_unet_takes_any_size(exported, format):
    model, cfg = exported("unet", format)
    with torch.no_grad():
        expected = Predictor(cfg).model({"images": pixels(1, 3, 33, 46)})["probabilities"]
    torch.testing.assert_close(model.run(pixels(1, 3, 33, 46))["probabilities"], expected, rtol=0, atol=1e-4)


def test_a_unet_of_torch_export_says_which_sizes_it_takes(exported):
    model, _ = exported("unet", "torch_export")
    with pytest.raises(ValueError, match=r"multiples of 4, got an image of 32 x 46: resize .* export to ONNX"):
        model.run(pixels(1, 3, 32, 46))


@pytest.mark.parametrize("format", FORMATS[:2])
@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet"])
def test_detections(exported, name, format):
    """In the pixels of the input from the file, then in those of the original through the mapper's dict."""
    model, cfg = exported(name, format)
    network, image = Predictor(cfg).model, pixels(3, 90, 70)
    record = {"image": image.to(torch.uint8), "height": 180, "width": 210}
    for inputs in ({"image": image}, record):
        with torch.no_grad():
            expected = network([inputs])[0]["instances"]
            (found,) = model([inputs])
        found = found["instances"]
        assert len(found) == len(expected) >= 5 and found.image_size == expected.image_size
        assert -expected.scores.diff().max() > 1e-6  # else their order would be open
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
        assert found.pred_classes.tolist() == expected.pred_classes.tolist()
        if name == "mask_rcnn":
            assert found.pred_masks.shape == expected.pred_masks.shape
            assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-4
    output = model.run(image)
    assert list(output) == sorted(output) == list(model.about["outputs"])
