import json

import engine_toys
import pytest
import torch
from pycocotools.coco import COCO

from iso_d2.engine.predictor import Predictor

SIZE = (engine_toys.HEIGHT, engine_toys.WIDTH)


@pytest.fixture
def predict(load_tool):
    return load_tool("predict")


@pytest.fixture
def arguments(toy_data, tmp_path):
    """A config and a checkpoint of the toy, which finds its box (score 0.9) in every image."""
    cfg = engine_toys.toy_config(tmp_path / "output")
    (tmp_path / "toy.yaml").write_text(cfg.dump())
    torch.save({"model": engine_toys.ToyDetector(cfg).state_dict()}, tmp_path / "toy.pth")
    return ["--config-file", str(tmp_path / "toy.yaml"), "--output", str(tmp_path / "out"), "--input"]


def weights(tmp_path):
    return ["--opts", "MODEL.WEIGHTS", str(tmp_path / "toy.pth")]


def test_folder_gives_pictures_and_a_json_that_pycocotools_reads(predict, arguments, tmp_path, capsys):
    predict.main([*arguments, str(tmp_path), *weights(tmp_path)])
    assert "8 detections on 8 images" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.png"))) == 8
    coco = COCO(tmp_path / "out" / "predictions.json")
    assert [coco.cats[1]["name"], len(coco.imgs)] == ["square", 8]
    x0, y0, x1, y1 = engine_toys.BOX
    for image in coco.imgs.values():
        assert (image["height"], image["width"]) == SIZE
        (found,) = coco.imgToAnns[image["id"]]
        assert found["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert found["score"] == pytest.approx(0.9)


def test_class_ids_are_those_of_the_data_set(predict, arguments, tmp_path, monkeypatch):
    metadata = engine_toys.MetadataCatalog.get("toy_test")
    monkeypatch.setitem(vars(metadata), "thing_dataset_id_to_contiguous_id", {17: 0})
    predict.main([*arguments, str(tmp_path / "toy_test_0.png"), *weights(tmp_path)])
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert document["categories"] == [{"id": 17, "name": "square"}]
    assert document["annotations"][0]["category_id"] == 17


def test_broken_file_is_named_and_the_others_are_done(predict, arguments, tmp_path):
    (tmp_path / "aaa.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(SystemExit, match=r"1 files could not be read:\n.*aaa\.jpg"):
        predict.main([*arguments, str(tmp_path), *weights(tmp_path)])
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 8


@pytest.mark.parametrize("last", [True, False])
def test_layout_is_that_of_the_config(arguments, tmp_path, last):
    opts = ["MODEL.WEIGHTS", str(tmp_path / "toy.pth"), "MODEL.CHANNELS_LAST", last]
    model = Predictor(engine_toys.toy_config(tmp_path / "output", *opts)).model
    # one of 1x1 or of one channel lies both ways at once
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) == last for weight in weights)


@pytest.mark.parametrize(
    ("image", "opts", "message"),
    [
        ("toy_test_0.png", [], "MODEL.WEIGHTS is empty: name a checkpoint"),
        ("toy_test_0.png", ["--opts", "MODEL.WEIGHTS", "absent.pth"], r"absent\.pth' does not exist"),
        ("absent.png", [], r"absent\.png is neither a file nor a folder"),
        ("output", [], "no image"),
        ("toy_test_0.png", ["--opts", "MODEL.WEIGHT", "x.pth"], "error: Non-existent.*MODEL.WEIGHTS"),
        ("toy_test_0.png", ["--opts", "MODEL.WEIGHTS"], "odd length"),
    ],
)
def test_errors(predict, arguments, tmp_path, image, opts, message):
    (tmp_path / "output").mkdir()
    with pytest.raises(SystemExit, match=message):
        predict.main([*arguments, str(tmp_path / image), *opts])
