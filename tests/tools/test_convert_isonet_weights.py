"""From a file of the authors' code through the tool into the models that MODEL.WEIGHTS serves."""

import contextlib
import io

import authors_layout
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import iso_d2  # noqa: F401  registers the models
from iso_d2.config import add_iso_config
from iso_d2.engine.checkpoint import IsoCheckpointer


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("convert_isonet_weights")


@pytest.fixture(scope="module")
def authors():
    torch.manual_seed(0)
    return authors_layout.random_net(18, True)


@pytest.fixture(scope="module")
def conversion(tool, authors, tmp_path_factory):
    """A state dict as the authors write it, converted: the new file's path, and what the tool printed."""
    folder = tmp_path_factory.mktemp("converted")
    torch.save(authors_layout.checkpoint(authors), folder / "RISO18.pt")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        tool.main([str(folder / "RISO18.pt"), str(folder / "risonet18.pth")])
    return str(folder / "risonet18.pth"), printed.getvalue()


@pytest.fixture
def converted(conversion):
    return conversion[0]


def base_config(*opts):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.BACKBONE.NAME = "build_isonet_backbone"
    cfg.MODEL.ISONET.DEPTH = 18
    cfg.merge_from_list(list(opts))
    return cfg


def test_report_and_file(conversion, authors):
    path, printed = conversion
    assert printed == (
        f"R-ISONet-18, imagenet stem, 10 classes: {len(authors)} parameters written to {path}\n"
        "left out: optim, epoch, train_accuracy, test_accuracy\n"
    )
    content = torch.load(path, weights_only=True)
    assert set(content) == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    assert not any(name.startswith("backbone.") for name in content["model"])


@pytest.mark.parametrize("out_features", [["linear"], ["res5"]])
def test_classification_takes_every_key(converted, authors, out_features, log):
    model = build_model(
        base_config(
            *("MODEL.META_ARCHITECTURE", "ImageClassifier", "MODEL.ISONET.OUT_FEATURES", out_features),
            *(
                "MODEL.CLASSIFIER.NUM_CLASSES",
                10,
                "MODEL.PIXEL_MEAN",
                [0.0] * 3,
                "MODEL.PIXEL_STD",
                [1.0] * 3,
            ),
        )
    ).eval()
    IsoCheckpointer(model).load(converted)
    assert not [record for record in log.records if record.levelname == "WARNING"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = authors_layout.logits(authors, 18, images).softmax(dim=1)
        torch.testing.assert_close(model({"images": images})["scores"], expected, rtol=1e-4, atol=1e-5)


DETECTORS = {
    "C5": ("MODEL.ISONET.OUT_FEATURES", ["res5"], "MODEL.RPN.IN_FEATURES", ["res5"])
    + ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["res5"])
    + ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1)
    + ("MODEL.ROI_BOX_HEAD.FC_DIM", 8),
    "C4": ("MODEL.ISONET.OUT_FEATURES", ["res4"], "MODEL.ROI_HEADS.NAME", "ISORes5ROIHeads"),
    "FPN": ("MODEL.BACKBONE.NAME", "build_isonet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 8)
    + ("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"])
    + ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]])
    + ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"])
    + ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1)
    + ("MODEL.ROI_BOX_HEAD.FC_DIM", 8),
}
# Where the parameters of stem, res2, res3, res4 and of res5 lie
PLACES = {
    "C5": ("backbone.", "backbone."),
    "C4": ("backbone.", "roi_heads."),
    "FPN": ("backbone.bottom_up.", "backbone.bottom_up."),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_take_every_key_but_the_classifier(name, converted, log):
    model = build_model(base_config("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", *DETECTORS[name]))
    IsoCheckpointer(model).load(converted)
    loaded, state = torch.load(converted)["model"], model.state_dict()
    for key, tensor in loaded.items():
        if not key.startswith("linear."):
            place = PLACES[name][key.startswith("res5.")] + key
            assert torch.equal(state.pop(place), tensor), place
    # What stays as it was belongs to the detector alone.
    assert not any("branch" in key or "srelu" in key or "stem" in key for key in state)
    warnings = " ".join(record.getMessage() for record in log.records if record.levelname == "WARNING")
    assert "linear" not in warnings and "0 not in the model" in warnings


def test_own_classification_training_into_fpn(tool, tmp_path, log, capsys):
    """Pretrained at 32x32: everything but the stem, whose kernel is another, goes into the detector."""
    cifar = ("MODEL.ISONET.STEM", "cifar", "MODEL.ISONET.OUT_FEATURES", ["linear"])
    pretrained = build_model(base_config("MODEL.META_ARCHITECTURE", "ImageClassifier", *cifar))
    torch.save({"model": pretrained.state_dict(), "iteration": 7}, tmp_path / "model_final.pth")
    tool.main([str(tmp_path / "model_final.pth"), str(tmp_path / "start.pth")])
    assert capsys.readouterr().out.endswith("left out: iteration\n")

    model = build_model(base_config("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", *DETECTORS["FPN"]))
    IsoCheckpointer(model).load(str(tmp_path / "start.pth"))
    warning = " ".join(record.getMessage() for record in log.records if record.levelname == "WARNING")
    assert "1 not in the model: stem.conv.weight" in warning
    state = model.state_dict()
    for key, tensor in pretrained.state_dict().items():
        if key.startswith("backbone.res"):
            assert torch.equal(state[key.replace("backbone.", "backbone.bottom_up.")], tensor)


def test_there_and_back(tool, converted, authors, tmp_path):
    tool.main([converted, str(tmp_path / "back.pt"), "--to-authors"])
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == ["net"]
    expected = authors_layout.checkpoint(authors)["net"]
    assert back["net"].keys() == expected.keys()
    assert all(torch.equal(back["net"][name], expected[name]) for name in expected)


def test_wrong_file_ends_with_a_message(tool, tmp_path):
    (tmp_path / "a.pt").write_text("<html>")
    with pytest.raises(SystemExit) as stopped:
        tool.main([str(tmp_path / "a.pt"), str(tmp_path / "b.pth")])
    assert stopped.value.code.startswith("error: ") and "a.pt' cannot be read" in stopped.value.code
    assert not (tmp_path / "b.pth").exists()
