import json
import re
import sys

import engine_toys
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO

from iso_d2.engine.setup import load_config
from iso_d2.modeling.segmentor import to_original

UNET = ["MODEL.META_ARCHITECTURE", "UNetSegmentor", "MODEL.UNET.BASE_CHANNELS", "4", "MODEL.UNET.DEPTH", "3"]
UNET += ["DATASETS.TEST", "('phantom_test',)", "INPUT.FORMAT", "RGB", "INPUT.ALBUMENTATIONS.TEST", "[]"]
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


def toy_weights(tmp_path):
    return ["--opts", "MODEL.WEIGHTS", str(tmp_path / "toy.pth")]


def test_folder_gives_pictures_and_a_json_that_pycocotools_reads(predict, arguments, tmp_path, capsys):
    predict.main([*arguments, str(tmp_path), *toy_weights(tmp_path)])
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
    predict.main([*arguments, str(tmp_path / "toy_test_0.png"), *toy_weights(tmp_path)])
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert document["categories"] == [{"id": 17, "name": "square"}]
    assert document["annotations"][0]["category_id"] == 17


def test_broken_file_is_named_and_the_others_are_done(predict, arguments, tmp_path):
    (tmp_path / "aaa.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(SystemExit, match=r"1 files could not be read:\n.*aaa\.jpg"):
        predict.main([*arguments, str(tmp_path), *toy_weights(tmp_path)])
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 8


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


@pytest.fixture
def unet_weights(tmp_path):
    """A checkpoint of a small UNet as it starts."""
    torch.manual_seed(0)
    torch.save({"model": build_model(load_config(opts=UNET)).state_dict()}, tmp_path / "unet.pth")
    return ["MODEL.WEIGHTS", str(tmp_path / "unet.pth")]


def test_folder_of_slices(predict, unet_weights, tmp_path, capsys):
    slices = tmp_path / "patient"
    slices.mkdir()
    for number in (2, 10):
        image = np.full((20, 30, 3), 100, np.uint8)
        Image.fromarray(image).save(slices / f"p_{number}.tif")
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(slices / f"p_{number}_mask.tif")
    (tmp_path / "unet.yaml").write_text(load_config(opts=UNET).dump())
    arguments = ["--config-file", str(tmp_path / "unet.yaml"), "--input", str(slices), "--threshold", "1.1"]
    predict.main([*arguments, "--output", str(tmp_path / "out"), "--opts", *unet_weights])
    said = capsys.readouterr().out
    assert "masks of 2 images" in said
    assert f"{slices}: Dice of the volume 100.0 %" in said  # nothing to find, and nothing found
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{n}_{kind}.png" for n in ("0000_p_2", "0001_p_10") for kind in ("mask", "overlay")]


def test_an_exported_network_gives_the_same_masks(predict, load_tool, unet_weights, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "unet.yaml").write_text(load_config(opts=UNET).dump())
    config, exported = ["--config-file", str(tmp_path / "unet.yaml")], str(tmp_path / "unet.ts")
    export = [*config, "--format", "torchscript", "--output", exported]
    load_tool("export").main([*export, "--opts", *unet_weights])
    said = capsys.readouterr().out
    assert re.search(r"images +batch x 3 x height x width\nprobabilities +batch x 1 x height x width\n", said)
    assert re.search(r"unet\.ts: differs from the network by at most \d\.\de[+-]\d\d", said)
    image = ["--input", str(tmp_path / "a.png"), "--threshold", "0.5"]
    predict.main([*config, *image, "--output", str(tmp_path / "1"), "--opts", *unet_weights])
    predict.main(["--exported", exported, *image, "--output", str(tmp_path / "2")])
    masks = [np.asarray(Image.open(tmp_path / folder / "0000_a_mask.png")) for folder in "12"]
    assert (masks[0] == masks[1]).all() and 0 < masks[0].mean() < 255
    with pytest.raises(SystemExit, match=r"error: Folder .* does not exist: make it first"):
        load_tool("export").main([*export[:-1], str(tmp_path / "none" / "unet.ts")])
    with pytest.raises(SystemExit, match=r"error: .*unet\.pth is no exported network"):
        predict.main(["--exported", str(tmp_path / "unet.pth"), *image, "--output", str(tmp_path / "3")])


class BrightInTheMiddle(torch.nn.Module):
    """In the place of a UNetSegmentor: foreground is what is bright in the channel in the middle."""

    def forward(self, batched_inputs):
        return [{"sem_seg": to_original((x["image"][1:2] > 127).float(), x)} for x in batched_inputs]


def test_volumes(predict, arguments, tmp_path, monkeypatch, capsys):
    nibabel = pytest.importorskip("nibabel")
    monkeypatch.setattr(predict, "load_ensemble", lambda cfg, weights: BrightInTheMiddle())
    monkeypatch.setattr(predict, "find_folds", lambda folder: (tmp_path / "unet.yaml", []))
    (tmp_path / "unet.yaml").write_text(load_config(opts=UNET).dump())
    voxels = np.random.default_rng(0).integers(1, 100, (6, 12, 10)).astype(np.int16)  # S, R, A
    voxels[4, 1:4, 5:9] = 900
    affine = np.array([[0, 2, 0, -7], [0, 0, 3, 8], [5, 0, 0, 9], [0, 0, 0, 1]], float)
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, affine), scans / "a.nii.gz")
    (scans / "b.nii").write_bytes(b"")
    for name in ("a_mask.nii.gz", "b_mask.nii.gz"):
        (scans / name).write_bytes(b"no volume to predict, as the name says")
    Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save(scans / "c.png")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(scans / "c_mask.png")
    fold = ["--folds", str(tmp_path), "--input", str(scans), "--output"]
    with pytest.raises(SystemExit, match=r"error: 1 files .*\n.*cannot read the volume .*b\.nii"):
        predict.main([*fold, str(out)])
    said = capsys.readouterr().out
    assert f"masks of 2 images in {out}\n" in said
    assert f"{out / 'a_mask.nii.gz'}: foreground in 1 of 6 slices, 12 voxels" in said
    assert f"{scans}: Dice of the volume 100.0 %" in said  # of c alone
    assert [path.name for path in out.glob("*.nii*")] == ["a_mask.nii.gz"]
    written = nibabel.load(out / "a_mask.nii.gz")
    assert (written.affine == affine).all() and (np.asarray(written.dataobj) == (voxels == 900)).all()

    with pytest.raises(SystemExit, match=r"a_mask\.nii\.gz exists: remove it, or, if it is a true mask"):
        predict.main([*fold, str(scans)])
    twice = [*fold[:3], *[str(scans / "a.nii.gz")] * 2, "--output", str(out)]
    with pytest.raises(SystemExit, match=r"a_mask\.nii\.gz would be the mask of two volumes"):
        predict.main(twice)
    with pytest.raises(SystemExit, match="is a volume, which needs a segmentation model"):
        predict.main([*arguments, str(scans / "a.nii.gz"), *toy_weights(tmp_path)])
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(SystemExit, match=r"error: NIfTI volumes need nibabel .*iso_d2\[medical\]"):
        predict.main([*fold, str(out)])


def test_a_true_mask_that_cannot_be_read_costs_the_dice_alone(predict, unet_weights, tmp_path, capsys):
    for name in ("a", "b"):
        Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / f"{name}_mask.png")
    (tmp_path / "a_mask.png").write_bytes(b"no image")
    (tmp_path / "unet.yaml").write_text(load_config(opts=UNET).dump())
    arguments = ["--config-file", str(tmp_path / "unet.yaml"), "--input", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"1 files .*\n.*cannot read the mask .*a_mask\.png"):
        predict.main([*arguments, "--output", str(tmp_path / "out"), "--opts", *unet_weights])
    said = capsys.readouterr().out
    assert "masks of 2 images" in said and "Dice" not in said
    assert (tmp_path / "out" / "0000_a_mask.png").is_file()
