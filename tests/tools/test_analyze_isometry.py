import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

from iso_d2.engine.setup import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RISONET = CONFIGS / "quick" / "risonet20_shapes_cls.yaml"
RESNET = CONFIGS / "cifar" / "resnet18_cifar10.yaml"
NARROW_RESNET = ["MODEL.RESNETS.DEPTH", "8", "MODEL.RESNETS.OUT_FEATURES", "['res4']"]


@pytest.fixture
def tool(load_tool):
    return load_tool("analyze_isometry")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    pixels = torch.randint(256, (20, 30, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def small(*models, images, output, size=8, opts=()):
    arguments = [*map(str, models), "--output", str(output), "--images", str(images), "--size", str(size)]
    narrow = ["MODEL.DEVICE", "cpu", "MODEL.ISONET.DEPTH", "8", *NARROW_RESNET]
    return [*arguments, "--opts", *narrow, *map(str, opts)]


@pytest.fixture
def trained(tmp_path):
    """A checkpoint whose thresholds and scales moved, and its config beside it."""
    folder = tmp_path / "arm" / "run"
    folder.mkdir(parents=True)
    cfg = load_config(RISONET, ["MODEL.DEVICE", "cpu", "MODEL.ISONET.DEPTH", 8])
    (folder / "config.yaml").write_text(cfg.dump())
    state = build_model(cfg).state_dict()
    state["backbone.res2.0.scale.scale"].fill_(0.75)
    state["backbone.res2.0.srelu.threshold"].fill_(-3)
    state["backbone.res2.0.branch.conv1.weight"] *= 2
    torch.save({"model": state}, folder / "model_final.pth")
    return folder / "model_final.pth"


def test_before_and_after_training_and_batch_norm_beside(tool, image, trained, tmp_path, capsys):
    output = tmp_path / "out"
    models = [RISONET, f"{RISONET}={trained}", trained, RESNET]
    arguments = small(*models, images=image, output=output)
    tool.main(arguments)
    document = json.loads((output / "isometry.json").read_text())
    labels = ["risonet20_shapes_cls", "risonet20_shapes_cls, model_final", "arm/run, model_final"]
    assert list(document["models"]) == [*labels, "resnet18_cifar10"]
    before, after, same, resnet = document["models"].values()

    conv = "res2.0.branch.conv1"
    assert [x["layers"][conv]["sigma_max"] for x in (before, after, same)] == pytest.approx([1, 2, 2])
    assert [x["scales"]["res2.0.scale"] for x in (before, after)] == pytest.approx([0.2, 0.75])
    assert [x["thresholds"]["res2.0.srelu"]["max"] for x in (before, after)] == [-1, -3]
    assert same["depth"] == after["depth"]
    assert (resnet["thresholds"], resnet["scales"]) == ({}, {})
    assert (before["calibrated_norms"], resnet["calibrated_norms"]) == (0, 9)
    assert before["input"] == [1, 3, 8, 8]
    assert list(resnet["depth"]) == ["stem", "res2.0", "res3.0", "res4.0"]
    assert [list(x["jacobian"][0]) for x in (before, resnet)] == [["image", "stem"]] * 2
    assert (document["num_images"], document["size"], document["images"]) == (1, 8, [str(image)])
    assert {"command", "date", "versions"} <= set(document)
    for name in ("layers", "depth", "jacobian"):
        assert Image.open(output / f"isometry_{name}.png").size[0] > 500

    printed = capsys.readouterr().out
    assert "9 batch normalizations have the statistics of these images" in printed
    assert printed.count("Jacobian of") == 1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["absent.yaml"], r"absent\.yaml' does not exist"),
        ([f"{RISONET}=absent.pth"], r"absent\.pth' does not exist"),
        (["absent.pth"], r"absent\.pth is no config.*give CONFIG\.yaml=absent\.pth"),
    ],
)
def test_missing_files(tool, image, tmp_path, models, message):
    with pytest.raises(SystemExit, match=message):
        tool.main(small(*models, images=image, output=tmp_path / "out"))


def test_other_errors(tool, image, trained, tmp_path):
    def run(model, message, **options):
        with pytest.raises(SystemExit, match=message):
            tool.main(small(model, **{"images": image, "output": tmp_path / "out", **options}))

    run(f"{RESNET}={trained}", "does not fit the model's backbone")
    run(RISONET, "ISONet has a stride of 4 pixels in all, the images have 3", size=3)
    run(RISONET, "must be at least 1, got 8 and 0", size=0)
    run(RISONET, "absent is neither an image file, a folder nor a registered data set", images="absent")
    run(RESNET, "1 of 4x4 pixels leave it a single value a channel", size=4)
    run(RISONET, "error: Non-existent.*MODEL.ISONET.DEPTH", opts=["MODEL.ISONET.DEPHT", 8])


def test_jacobian_may_be_left_out(tool, image, tmp_path):
    output = tmp_path / "out"
    tool.main(["--jacobian-images", "0", *small(RISONET, images=image, output=output)])
    assert json.loads((output / "isometry.json").read_text())["models"][RISONET.stem]["jacobian"] == []
    with pytest.raises(SystemExit, match="0 or more images, got -1"):
        tool.main(["--jacobian-images", "-1", *small(RISONET, images=image, output=output)])


def test_a_named_data_set_is_of_the_split_of_the_first_model(tool, tmp_path, monkeypatch):
    asked = []

    def get(name):
        asked.append(name)
        raise FileNotFoundError(name)

    monkeypatch.setattr(DatasetCatalog, "get", get)
    opts = ["DATASETS.LGG_SPLIT", "fold", "DATASETS.LGG_FOLD", 1, "DATASETS.LGG_FOLDS", 3]
    with pytest.raises(SystemExit, match="lgg_fold1of3_val"):
        tool.main(small(RISONET, images="lgg_val", output=tmp_path / "out", opts=opts))
    assert asked == ["lgg_fold1of3_val"]
