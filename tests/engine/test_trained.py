"""Networks that come with the package, and what they say of images in every form."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

import iso_d2
from iso_d2.engine import trained
from iso_d2.engine.predictor import by_class
from iso_d2.engine.setup import load_config
from iso_d2.evaluation.segmentation_pictures import PREDICTED
from iso_d2.modeling import fold_scales_

CLASSIFIER = [
    "MODEL.ISONET.DEPTH",
    "8",
    "MODEL.CLASSIFIER.NUM_CLASSES",
    "10",
    "DATASETS.TEST",
    "('cifar10_test',)",
]
SMALL = ["INPUT.ALBUMENTATIONS.TEST", "[['Resize', {'height': 32, 'width': 32}]]"]


@pytest.fixture
def ship(load_tool, tmp_path, monkeypatch):
    """Function that ships a network as it starts, under the name "new", beside nothing else."""

    def shipped(config, opts):
        run, folder = tmp_path / "run", tmp_path / "weights"
        run.mkdir()
        folder.mkdir()
        cfg = load_config(config, opts)
        torch.manual_seed(0)
        state = build_model(cfg).state_dict()
        torch.save({"model": state, "iteration": 6}, run / "model_final.pth")
        (run / "config.yaml").write_text(cfg.dump())
        (run / "metrics.json").write_text(
            '{"classification/top1": 12.5}\n{"classification/top1": 25.0, "lr": 1}\n'
        )
        (folder / "new.json").write_text('{"what": "a network as it starts"}')
        words = ["new", str(run), "--command", "c", "--commit", "1234567", "--results", "n = 1"]
        load_tool("ship_network").main([*words, "--folder", str(folder)])
        monkeypatch.setattr(trained, "FOLDER", folder)
        return state

    return shipped


def test_all_that_come_with_the_package_load_and_are_small():
    assert "isounet-lgg-narrow" in iso_d2.list_models()
    for name in iso_d2.list_models():
        network = iso_d2.load(name, device="cpu")
        assert (trained.FOLDER / f"{name}.safetensors").stat().st_size < 3e6
        assert {"what", "data", "use", "training", "metrics", "results", "sha256"} <= set(network.card)
        assert "licence" in network.card["data"] and network.card["training"]["command"]
        assert sum(p.numel() for p in network.model.state_dict().values()) == network.card["parameters"]


def test_a_slice_in_every_form_gives_the_same_mask(tmp_path):
    """The phantoms are not what it was trained on, but it is the same network for all forms."""
    record = next(r for r in DatasetCatalog.get("phantom_test") if r["sem_seg_array"].any())
    network = iso_d2.load("isounet-lgg-narrow", device="cpu")
    file = record["file_name"]
    image = Image.open(file).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    by_file = network(file)
    assert by_file.mask.shape == array.shape[:2] and by_file.mask.dtype == bool
    assert 0 < by_file.mask.mean() < 0.5
    np.testing.assert_array_equal(by_file.mask, by_file.probabilities[0].numpy() >= 0.5)
    for form in (image, array, tensor, tensor.float() / 255, array / np.float32(255)):
        np.testing.assert_array_equal(network(form).mask, by_file.mask)
    several = [
        network([file, image]),
        network(tensor[None].repeat(2, 1, 1, 1)),
        network(np.stack([array] * 2)),
    ]
    for predictions in several:
        assert [p.mask.sum() for p in predictions] == [by_file.mask.sum()] * 2
    drawn = np.asarray(by_file.draw())
    assert drawn.shape == (4 * array.shape[0], 4 * array.shape[1], 3)
    assert (drawn == PREDICTED).all(axis=2).any()


@pytest.mark.parametrize("name", ["isonet20-cifar10", "risonet20-cifar10"])
def test_a_classifier_knows_enlarged_images_of_cifar10(real_data, name):
    real_data("cifar-10-batches-bin")
    network = iso_d2.load(name, device="cpu")
    records = DatasetCatalog.get("cifar10_test")[:200]
    names = MetadataCatalog.get("cifar10_test").thing_classes
    right = 0
    for record in records:
        image = Image.fromarray(record["image_array"].transpose(1, 2, 0)).resize((96, 96), Image.BICUBIC)
        scores = network(image).scores
        right += max(scores, key=scores.get) == names[record["label"]]
    assert right >= 0.75 * len(records)


def test_grey_pixels_are_three_equal_channels():
    network = iso_d2.load("isounet-lgg-narrow", device="cpu")
    grey = np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)
    expected = network(np.stack([grey] * 3, axis=2)).probabilities
    for form in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        torch.testing.assert_close(network(form).probabilities, expected, rtol=0, atol=0)


def test_pil_images_are_read_as_files_are(tmp_path):
    """16 bits are scaled, and the orientation that a camera noted counts."""
    network = iso_d2.load("isounet-lgg-narrow", device=torch.device("cpu"))
    ramp = np.linspace(0, 65535, 48 * 40).astype(np.uint16).reshape(48, 40)
    Image.fromarray(ramp).save(tmp_path / "16.png")
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.fromarray((ramp // 257).astype(np.uint8)).save(tmp_path / "turned.png", exif=exif)
    for name, shape in (("16.png", (48, 40, 3)), ("turned.png", (40, 48, 3))):
        by_file, by_image = network(tmp_path / name).image, network(Image.open(tmp_path / name)).image
        assert by_file.shape == shape and by_file.max() == 255 and len(np.unique(by_file)) > 200
        np.testing.assert_array_equal(by_image, by_file)
    for values in (ramp.astype(np.int32), ramp.astype(np.float32)):
        with pytest.raises(ValueError, match="cannot read the PIL image: its values have 32 bits"):
            network(Image.fromarray(values))


def test_a_prediction_keeps_its_image():
    network = iso_d2.load("isounet-lgg-narrow", device="cpu")
    frame, before = torch.full((3, 32, 32), 7, dtype=torch.uint8), torch.get_rng_state()
    prediction = network(frame)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn
    frame.zero_()
    assert (prediction.image == 7).all()


def test_classes_without_one_name_each_have_numbers():
    for names in (["a"], ["a", "a"], None):
        assert by_class([0.1, 0.9], SimpleNamespace(get=lambda _, names=names: names)) == {"1": 0.9, "0": 0.1}


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4, 2), np.uint8), r"got \(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), r"with pixels, got \(0, 4\)"),
        (np.zeros((4, 4), np.uint16), "got uint16"),
        (np.full((4, 4), 1.5), "values from 0 to 1"),
        (np.full((4, 4), np.nan), "values from 0 to 1"),
        (torch.zeros(2, 4, 4), r"got \(2, 4, 4\)"),
        ({"image": 1}, "got dict"),
    ],
)
def test_no_image(image, message):
    network = iso_d2.load("isounet-lgg-narrow", device="cpu")
    with pytest.raises(ValueError, match=message):
        network(image)


def test_a_classifier_names_classes(ship):
    state = ship("quick/risonet20_shapes_cls", [*CLASSIFIER, *SMALL])
    network = iso_d2.load("new", device="cpu")
    assert network.card["metrics"] == {"classification/top1": 25.0} and network.card["training"]["steps"] == 7
    for name, value in network.model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    prediction = network(image)
    assert next(iter(prediction.scores)) in str(prediction) and len(prediction.scores) == 10
    assert "airplane" in prediction.scores and sum(prediction.scores.values()) == pytest.approx(1)
    assert list(prediction.scores.values()) == sorted(prediction.scores.values(), reverse=True)
    with torch.no_grad():
        (expected,) = fold_scales_(network.model)([{"image": torch.from_numpy(image).permute(2, 0, 1)}])
    assert prediction.scores["cat"] == pytest.approx(float(expected["scores"][3]), abs=1e-6)
    assert prediction.draw().size == (256, 256)
    network(np.zeros((50, 70, 3), np.uint8))  # resized


def test_a_large_network_is_not_shipped(ship, tmp_path):
    with pytest.raises(SystemExit, match="has at most 3000000"):
        ship(
            "quick/risonet18_frcnn_shapes", ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8"]
        )
    assert [file.name for file in (tmp_path / "weights").iterdir()] == ["new.json"]


def test_boxes_are_drawn_where_they_are():
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[5.0, 6, 25, 30], [40, 10, 55, 20]]))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.3]), torch.tensor([0, 0])
    black = np.zeros((40, 60, 3), np.uint8)
    prediction = trained.Prediction(black, MetadataCatalog.get("shapes_test"), instances=found)
    assert str(prediction) == "Prediction(40x60 pixels: 2 instances)"
    drawn = np.asarray(prediction.draw()).any(axis=2)
    assert drawn.shape == (320, 480)  # eight times as large
    assert drawn[64:224, 40].all() and not drawn[96:144, 352:416].any()
    assert np.asarray(prediction.draw(threshold=0.2)).any(axis=2)[96:144, 320].all()


def test_an_unknown_name_lists_the_others():
    with pytest.raises(
        ValueError, match=r"no trained network 'isounet-lgg'.*did you mean isounet-lgg-narrow"
    ):
        iso_d2.load("isounet-lgg")


def test_damaged_weights_are_not_loaded(tmp_path, monkeypatch):
    shutil.copytree(trained.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(trained, "FOLDER", tmp_path / "weights")
    file = tmp_path / "weights" / "isounet-lgg-narrow.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its checksum"):
        iso_d2.load("isounet-lgg-narrow")
    with pytest.raises(ValueError, match="is damaged: its checksum"):
        trained.trained_config("isounet-lgg-narrow")


def test_a_gpu_is_used_if_there_is_one(monkeypatch):
    assert trained.trained_config("isounet-lgg-narrow").MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trained.trained_config("isounet-lgg-narrow").MODEL.DEVICE == "cuda"
    assert trained.trained_config("isounet-lgg-narrow", ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE must be cpu, cuda or cuda:N, got 'gpu'"):
        iso_d2.load("isounet-lgg-narrow", device="gpu")


def test_predict_takes_a_name(load_tool, tmp_path, capsys):
    record = next(r for r in DatasetCatalog.get("phantom_test") if r["sem_seg_array"].any())
    command = ["--model", "isounet-lgg-narrow", "--input", record["file_name"], "--output", str(tmp_path)]
    load_tool("predict").main(command)
    (mask,) = tmp_path.glob("*_mask.png")
    expected = iso_d2.load("isounet-lgg-narrow", device="cpu")(record["file_name"]).mask
    # folded, the network rounds otherwise
    assert (np.asarray(Image.open(mask)) // 255 != expected).mean() < 1e-3


def test_predict_writes_the_scores_of_a_classifier(ship, load_tool, tmp_path):
    ship("quick/risonet20_shapes_cls", [*CLASSIFIER, *SMALL])
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    output = tmp_path / "out"
    load_tool("predict").main(
        ["--model", "new", "--input", str(tmp_path / "black.png"), "--output", str(output)]
    )
    (scores,) = json.loads((output / "scores.json").read_text()).values()
    assert len(scores) == 10 and sum(scores.values()) == pytest.approx(1)
