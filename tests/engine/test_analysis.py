from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iso_d2.engine.analysis import analyze_config, load_default_images, load_images, load_model
from iso_d2.engine.setup import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RISONET = CONFIGS / "quick" / "risonet20_shapes_cls.yaml"
RESNET = CONFIGS / "cifar" / "resnet18_cifar10.yaml"


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (30, 20), (90, 60, 30)).save(tmp_path / "image.png")


def test_images_of_folders_and_data_sets(image, tmp_path):
    Image.new("RGB", (200, 100), (1, 2, 3)).save(tmp_path / "a.png")
    first, second = load_images([tmp_path], 5)
    assert first.shape == second.shape == (20, 20, 3)
    assert first[0, 0].tolist() == [1, 2, 3]
    assert [x.shape for x in load_images([tmp_path / "a.png"], 1)] == [(64, 64, 3)]
    assert [x.shape for x in load_images(["shapes_cls_test"], 3)] == [(32, 32, 3)] * 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image"):
        load_images([tmp_path / "empty"], 1)


def test_default_images_are_the_test_set_or_generated_ones(monkeypatch, tmp_path, log):
    images, name = load_default_images(load_config(RISONET), 2)
    assert (len(images), name) == (2, "shapes_cls_test")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    images, name = load_default_images(load_config(RESNET), 2)
    assert (len(images), name) == (2, "shapes_test")
    assert "No images of cifar10_test" in log.text


def test_delta_initialisation_of_the_config_is_applied():
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "", "ISO.DELTA_INIT.ENABLED", True]
    opts += ["MODEL.RESNETS.DEPTH", 8, "MODEL.RESNETS.OUT_FEATURES", "['res4']"]
    model = load_model(load_config(RESNET, opts), [])
    weight = model.backbone.res2[0].conv1.weight
    assert torch.equal(weight[:, :, 1, 1], torch.eye(16))


def test_a_stem_that_is_to_whiten_its_images_whitens_these():
    opts = ["MODEL.DEVICE", "cpu", "MODEL.ISONET.DEPTH", 8, "MODEL.ISONET.WHITEN", True]
    cfg = load_config(RISONET, opts)
    pixels = np.random.default_rng(0).integers(256, size=(12, 12, 3), dtype=np.uint8)
    images = [np.ascontiguousarray(np.roll(pixels, i, axis=0) // 2 + 64) for i in range(4)]
    result = analyze_config(cfg, images, jacobian_images=0)
    # the whitened stem stretches what is small in the images: as drawn it is an isometry
    assert result["layers"]["stem.conv"]["isometry_error"] > 1
    cfg.merge_from_list(["MODEL.ISONET.WHITEN", False])
    assert analyze_config(cfg, images, jacobian_images=0)["layers"]["stem.conv"]["isometry_error"] < 1e-4
