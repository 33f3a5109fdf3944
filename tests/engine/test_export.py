"""Networks in files give what they give in PyTorch, at sizes and batches that they were not traced with."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from iso_d2.engine.export import export_model
from iso_d2.engine.exported import SUFFIXES, ExportedModel
from iso_d2.engine.predictor import Predictor
from iso_d2.engine.setup import load_config

FORMATS = list(SUFFIXES)
FPN = ["MODEL.ISONET.DEPTH", "18", "MODEL.FPN.OUT_CHANNELS", "8", "TEST.DETECTIONS_PER_IMAGE", "10"]
FPN += ["INPUT.FORMAT", "BGR", "INPUT.ALBUMENTATIONS.TEST", "[['Resize', {'height': 64, 'width': 80}]]"]
ROIS = [
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "16",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "8",
    "MODEL.ISONET.SIGNAL",
    "paper",
]
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
                if re.search("cls_score|bbox_pred|anchor_deltas", key):
                    parameter.data *= 0.3  # else scores are 0 or 1, and boxes exponentials of large values
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
    with pytest.raises(
        ValueError, match=r"multiples of 4, got an image of 32 x 46: resize .* export to ONNX"
    ):
        model.run(pixels(1, 3, 32, 46))


@pytest.mark.parametrize("format", FORMATS[:2])
@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet"])
def test_detections(exported, name, format, tmp_path):
    """In the pixels of the input, and of an image file that is resized for the network."""
    model, cfg = exported(name, format)
    checkpoint, file = Predictor(cfg), str(tmp_path / "image.png")
    image = pixels(3, 90, 70)
    Image.fromarray(image.permute(1, 2, 0).numpy().astype(np.uint8)).save(file)
    with torch.no_grad():
        from_pixels = model([{"image": image}])[0], checkpoint.model([{"image": image}])[0]
    for found, expected in (from_pixels, (Predictor(model.config(), model)(file), checkpoint(file))):
        found, expected = found["instances"], expected["instances"]
        assert len(found) == len(expected) >= 5 and found.image_size == expected.image_size
        assert -expected.scores.diff().max() > 1e-6  # else their order would be open
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
        assert found.pred_classes.tolist() == expected.pred_classes.tolist()
        if name == "mask_rcnn":
            assert expected.pred_masks.any()
            # a probability of one half may be rounded to either side
            assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-4


def test_a_file_says_what_it_takes_and_gives(exported):
    model, cfg = exported("mask_rcnn", "onnx")
    about = model.about
    assert about["input"] == {
        "name": "image",
        "shape": [3, "height", "width"],
        "dtype": "float32",
        "values": "0 to 255",
        "channels": "BGR",
        "multiple_of": 1,
    }
    assert about["outputs"] == {
        "boxes": ["detections", 4],
        "classes": ["detections"],
        "masks": ["detections", 1, 28, 28],
        "scores": ["detections"],
    }
    assert torch.__version__.startswith(about["versions"]["torch"])
    assert about["classes"] == ["person", "bicycle", "car"] and "FC_DIM: 16" in about["config"]
    restored = model.config(["TEST.DETECTIONS_PER_IMAGE", "3"])
    assert restored.TEST.DETECTIONS_PER_IMAGE == 3 and restored.MODEL.FPN == cfg.MODEL.FPN
    onnx = pytest.importorskip("onnx").load(model.file)
    assert json.loads(onnx.metadata_props[0].value) == about
    assert {node.domain for node in onnx.graph.node} == {""}  # operators of ONNX alone
    (image,) = onnx.graph.input
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == about["input"]["shape"]


def test_classes_come_with_the_file(exported):
    model, cfg = exported("classifier", "torchscript")
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    assert model.about["classes"] == metadata.thing_classes
    model.config(["DATASETS.TEST", "('elsewhere',)"])
    assert MetadataCatalog.get("elsewhere").thing_classes == metadata.thing_classes
    MetadataCatalog.remove("elsewhere")


def test_mirroring_is_part_of_the_file(trained, tmp_path):
    cfg = trained("unet").clone()
    cfg.TEST.MIRROR_AXES = ["width"]
    export_model(cfg, "torchscript", tmp_path / "model.ts")
    model = ExportedModel(tmp_path / "model.ts")
    assert model.config(["TEST.MIRROR_AXES", "['width']"]).TEST.MIRROR_AXES == ["width"]
    with pytest.raises(ValueError, match=r"MIRROR_AXES \[\]: .*model\.ts was exported with \['width'\]"):
        model.config(["TEST.MIRROR_AXES", "[]"])


def test_ids_of_a_json_come_with_the_file(trained, tmp_path):
    cfg = trained("mask_rcnn")
    DatasetCatalog.get(cfg.DATASETS.TEST[0])  # reading the json sets the ids
    export_model(cfg, "torchscript", tmp_path / "model.ts")
    model = ExportedModel(tmp_path / "model.ts")
    ids = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_dataset_id_to_contiguous_id
    assert {int(key): value for key, value in model.about["category_ids"].items()} == ids
    model.config(["DATASETS.TEST", "('elsewhere',)"])
    assert MetadataCatalog.get("elsewhere").thing_dataset_id_to_contiguous_id == ids
    MetadataCatalog.remove("elsewhere")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda found: found | {"boxes": found["boxes"] + 9}, "boxes differ by"),
        (lambda found: found | {"classes": found["classes"] + 1}, "boxes differ by inf"),
        (lambda found: found | {"masks": 1 - found["masks"]}, "boxes differ by"),
        (
            lambda found: {name: value[:3] for name, value in found.items()},
            "the file finds 3 boxes, the network",
        ),
    ],
)
def test_files_that_find_something_else_are_refused(trained, tmp_path, monkeypatch, change, message):
    run = ExportedModel.run
    monkeypatch.setattr(ExportedModel, "run", lambda self, images: change(run(self, images)))
    with pytest.raises(ValueError, match=message):
        export_model(trained("mask_rcnn"), "torchscript", tmp_path / "model.ts")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".ts", ".pt2", ".onnx"])
def test_a_checkpoint_is_no_exported_network(suffix, trained, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"model{suffix}"
    file.write_bytes(Path(trained("unet").MODEL.WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match=r"cannot be read as .*: is it whole"):
        ExportedModel(file)


def test_other_files(tmp_path):
    with pytest.raises(ValueError, match=r"model\.pth is no exported network .*into MODEL\.WEIGHTS"):
        ExportedModel(tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match=r"model\.ts' does not exist"):
        ExportedModel(tmp_path / "model.ts")
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.rand(2)), tmp_path / "other.ts")
    program = torch.export.export(nn.ReLU(), (torch.rand(2),))
    torch.export.save(program, tmp_path / "other.pt2")
    for name in ("other.ts", "other.pt2"):
        with pytest.raises(ValueError, match="lacks the metadata 'iso_d2': `iso-d2 export` did not write it"):
            ExportedModel(tmp_path / name)


def test_an_onnx_file_from_elsewhere(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:]
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="lacks the metadata 'iso_d2'"):
        ExportedModel(tmp_path / "other.onnx")
