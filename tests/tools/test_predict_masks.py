import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

from iso_d2.data import phantoms
from iso_d2.engine.predicted_masks import PredictedMasks
from iso_d2.engine.predictor import Predictor
from iso_d2.engine.setup import load_config

UNET = ["MODEL.META_ARCHITECTURE", "UNetSegmentor", "MODEL.UNET.BASE_CHANNELS", "4", "MODEL.UNET.DEPTH", "3"]
UNET += ["DATASETS.TEST", "('phantom_test',)", "INPUT.FORMAT", "RGB", "INPUT.ALBUMENTATIONS.TEST", "[]"]


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of a small UNet as it starts."""
    torch.manual_seed(0)
    torch.save({"model": build_model(load_config(opts=UNET)).state_dict()}, tmp_path / "unet.pth")
    return ["MODEL.WEIGHTS", str(tmp_path / "unet.pth")]


def test_a_file_is_preprocessed_like_the_test_set(weights):
    """What the predictor makes of a file is what the model makes of the same slice of the data set."""
    record = next(r for r in DatasetCatalog.get("phantom_test") if r["sem_seg_array"].any())
    predictor = Predictor(load_config(opts=[*UNET, *weights]))
    output = predictor(record["file_name"])
    assert output["probabilities"].shape == (1, phantoms.SIZE, phantoms.SIZE)
    with torch.no_grad():
        expected = predictor.model([predictor.mapper(record)])[0]
    torch.testing.assert_close(output["sem_seg"], expected["sem_seg"])


def test_folder_of_slices(load_tool, weights, tmp_path, capsys):
    slices = tmp_path / "patient"
    slices.mkdir()
    for number in (2, 10):
        image = np.full((20, 30, 3), 100, np.uint8)
        Image.fromarray(image).save(slices / f"p_{number}.tif")
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(slices / f"p_{number}_mask.tif")
    (tmp_path / "unet.yaml").write_text(load_config(opts=UNET).dump())
    arguments = ["--config-file", str(tmp_path / "unet.yaml"), "--input", str(slices), "--threshold", "1.1"]
    tool = load_tool("predict")
    tool.main([*arguments, "--output", str(tmp_path / "out"), "--opts", *weights])
    said = capsys.readouterr().out
    assert "masks of 2 images" in said
    assert f"{slices}: Dice of the volume 100.0 %" in said  # nothing to find, and nothing found
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{n}_{kind}.png" for n in ("0000_p_2", "0001_p_10") for kind in ("mask", "overlay")]


def test_masks_and_dice(tmp_path):
    """4 of 6 predicted pixels are right, of 8 true ones: 2 * 4 / (6 + 8), over two slices."""
    truths = np.zeros((2, 4, 4), np.uint8)
    truths[0, :2] = 255
    predicted = torch.zeros(2, 1, 4, 4)
    predicted[0, 0, 1], predicted[1, 0, 0, :2] = 0.6, 0.6
    masks = PredictedMasks(tmp_path, threshold=0.6)
    for number, truth in enumerate(truths):
        file = tmp_path / f"x{number}.png"
        Image.fromarray(np.full((4, 4, 3), 50, np.uint8)).save(file)
        Image.fromarray(truth).save(tmp_path / f"x{number}_mask.png")
        masks.add(file, predicted[number])
    assert masks.volume_dice() == {tmp_path: pytest.approx(100 * 8 / 14)}
    written = np.asarray(Image.open(tmp_path / "0000_x0_mask.png"))
    assert written.tolist() == [[0] * 4, [255] * 4, [0] * 4, [0] * 4]
    classes = torch.zeros(3, 4, 4)
    classes[2, 0] = 1
    Image.fromarray(np.full((4, 4, 3), 50, np.uint8)).save(tmp_path / "y.png")
    masks.add(tmp_path / "y.png", classes)
    assert np.asarray(Image.open(tmp_path / "0002_y_mask.png")).tolist() == [[2] * 4] + [[0] * 4] * 3
    assert masks.volume_dice() == {}  # one without a true mask


def test_a_true_mask_that_cannot_be_read_costs_the_dice_alone(load_tool, weights, tmp_path, capsys):
    for name in ("a", "b"):
        Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / f"{name}_mask.png")
    (tmp_path / "a_mask.png").write_bytes(b"no image")
    (tmp_path / "unet.yaml").write_text(load_config(opts=UNET).dump())
    arguments = ["--config-file", str(tmp_path / "unet.yaml"), "--input", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"1 files .*\n.*cannot read the mask .*a_mask\.png"):
        load_tool("predict").main([*arguments, "--output", str(tmp_path / "out"), "--opts", *weights])
    said = capsys.readouterr().out
    assert "masks of 2 images" in said and "Dice" not in said
    assert (tmp_path / "out" / "0000_a_mask.png").is_file()


def test_other_segmentors_get_the_slices_preprocessed_too(tmp_path):
    opts = [
        "MODEL.META_ARCHITECTURE",
        "SemanticSegmentor",
        "MODEL.BACKBONE.NAME",
        "build_isonet_fpn_backbone",
    ]
    opts += ["MODEL.ISONET.DEPTH", "18", "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"]
    opts += ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2", "INPUT.FORMAT", "RGB"]
    opts += ["MODEL.SEM_SEG_HEAD.NORM", "''", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8"]
    opts += ["DATASETS.TEST", "('phantom_test',)", "INPUT.ALBUMENTATIONS.TEST", "[]"]
    torch.save({"model": build_model(load_config(opts=opts)).state_dict()}, tmp_path / "semseg.pth")
    record = DatasetCatalog.get("phantom_test")[8]
    predictor = Predictor(load_config(opts=[*opts, "MODEL.WEIGHTS", str(tmp_path / "semseg.pth")]))
    found = predictor(record["file_name"])["sem_seg"]
    assert found.shape == (2, record["height"], record["width"])
    place = record["placement"]
    inside = torch.zeros(found.shape[1:], dtype=torch.bool)
    inside[place.top : place.top + place.height, place.left : place.left + place.width] = 1
    assert not inside.all() and (found[0][~inside] == 1).all() and (found[1][~inside] == 0).all()
    torch.testing.assert_close(found.sum(dim=0), torch.ones(found.shape[1:]))


def test_mask_of_another_size(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "x.png")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "x_mask.png")
    with pytest.raises(ValueError, match=r"x_mask\.png is of size \(3, 4\), its image of \(4, 4\)"):
        PredictedMasks(tmp_path, 0.5).add(tmp_path / "x.png", torch.zeros(1, 4, 4))
