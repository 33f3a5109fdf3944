"""What cannot be exported is named, and leaves no file."""

import sys

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from torch import nn

from iso_d2.engine.export import export_model
from iso_d2.engine.exported import SUFFIXES, ExportedModel
from iso_d2.engine.setup import load_config


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x


@BACKBONE_REGISTRY.register()
class UntraceableBackbone(Backbone):
    """A convolution, and an operation that a test chooses."""

    operation = None

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return {"features": self.operation(self.conv(x))}

    def output_shape(self):
        return {"features": ShapeSpec(channels=4, stride=1)}


@pytest.mark.parametrize(
    ("format", "operation", "message"),
    [
        ("onnx", lambda x: x * torch.linalg.svdvals(x)[..., None, :1], "aten::linalg_svd"),
        ("torchscript", Double.apply, "Double"),
        ("torch_export", lambda x: x if x.sum() > 0 else x.tanh(), "test_export_refusals.py"),
        ("torchscript", lambda x: x if x.shape[2] < x.shape[3] else x.tanh(), "another size"),
    ],
)
def test_what_cannot_be_traced_is_named(format, operation, message, monkeypatch, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    monkeypatch.setattr(UntraceableBackbone, "operation", staticmethod(operation))
    opts = ["MODEL.META_ARCHITECTURE", "ImageClassifier", "MODEL.BACKBONE.NAME", "UntraceableBackbone"]
    cfg = load_config(opts=[*opts, "MODEL.WEIGHTS", str(tmp_path / "model.pth")])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    what = rf"(?s)ImageClassifier cannot be exported as {format}: .*{message}"
    with pytest.raises(ValueError, match=what):
        export_model(cfg, format, tmp_path / f"model{SUFFIXES[format]}")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize(
    ("format", "file", "opts", "message"),
    [
        ("coreml", "x.onnx", [], "must be one of onnx, torchscript, torch_export, got 'coreml'"),
        ("onnx", "x.ts", [], r"a file of onnx must end in \.onnx, got .*x\.ts"),
        ("torchscript", "none/x.ts", [], r"Folder '.*none' does not exist: make it first"),
        ("torchscript", "x.ts", ["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        ("torchscript", "x.ts", ["MODEL.WEIGHTS", "no.pth"], r"no\.pth' does not exist"),
        ("torchscript", "x.ts", ["MODEL.META_ARCHITECTURE", "PanopticFPN"], "PanopticFPN cannot be exported"),
        ("torchscript", "x.ts", ["MODEL.KEYPOINT_ON", "True"], r"with keypoints .* cannot be exported"),
        ("torch_export", "x.pt2", [], "GeneralizedRCNN cannot be exported as torch_export.*: take onnx"),
    ],
)
def test_what_is_not_exported(format, file, opts, message, tmp_path):
    cfg = load_config(opts=["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", *opts])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        export_model(cfg, format, tmp_path / file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "x.onnx").touch()
    cfg = load_config("quick/isounet_phantom")
    for call in (
        lambda: export_model(cfg, "onnx", tmp_path / "x.onnx"),
        lambda: ExportedModel(tmp_path / "x.onnx"),
    ):
        with pytest.raises(ImportError, match=rf"{package}.*pip install iso_d2\[export\]"):
            call()
