"""What the mappers refuse, skip or say of data that do not fit."""

import itertools
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.detection_utils import SizeMismatchError
from mapping import STRETCH, config, mapper
from PIL import Image

from iso_d2.data import AlbumentationsMapper, BrokenImageError, CheckedDatasetMapper


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("Normalize", "ndarray of float32"),
        ("ToFloat", "ndarray of float32"),
        ("ToTensorV2", "Tensor of torch.uint8"),
    ],
)
def test_normalisation_is_left_to_the_model(record, name, got):
    with pytest.raises(ValueError, match=rf"must leave the image a uint8 array.* PIXEL_STD; got {got}. Take"):
        mapper([name, {}])(record)


def test_unknown_format():
    with pytest.raises(ValueError, match=r"INPUT.FORMAT must be one of RGB, BGR, L here, got 'YUV-BT.601'"):
        mapper(image_format="YUV-BT.601")


def test_keypoints_are_refused():
    cfg = config()
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ValueError, match=r"no keypoints: set INPUT.MAPPER detectron2"):
        AlbumentationsMapper(cfg, is_train=True)


@pytest.mark.parametrize("value", [None, [], "missing"])
def test_masks_wanted_but_not_in_the_data(record, value):
    record["annotations"][0]["segmentation"] = value
    if value == "missing":
        del record["annotations"][0]["segmentation"]
    with pytest.raises(
        ValueError, match=r"image.png: the annotation with box .* has no segmentation.*MASK_ON False"
    ):
        mapper(STRETCH)(record)


def test_detectron2s_mapper_names_missing_masks_too(record):
    cfg = config()
    cfg.MODEL.MASK_ON = True
    del record["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match=r"image.png: the annotation with box .* has no segmentation"):
        CheckedDatasetMapper(cfg, is_train=True)(record)


@pytest.mark.parametrize("skip", [False, True])
def test_detectron2s_mapper_names_or_skips_broken_images_too(record, skip, caplog):
    cfg = config()
    cfg.INPUT.SKIP_BROKEN = skip
    broken = truncate(record)
    with pytest.raises(BrokenImageError, match=r"cannot read the image .*cut\.jpg"):
        CheckedDatasetMapper(cfg, is_train=not skip)(broken)
    if skip:
        assert CheckedDatasetMapper(cfg, is_train=True)(broken) is None
    # Anything else stays as it is.
    with pytest.raises(SizeMismatchError):
        CheckedDatasetMapper(cfg, is_train=True)({**record, "width": 120})
    assert CheckedDatasetMapper(cfg, is_train=True)(record)["instances"].has("gt_boxes")


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
def test_detectron2s_mapper_refuses_a_damaged_png(record, key):
    with open(record[key], "r+b") as file:
        file.seek(-20, 2)  # in the checksum of the pixels, which Detectron2's own reader takes as they come
        file.write(b"xxxx")
    with pytest.raises(BrokenImageError, match=rf"cannot read the image {record[key]}"):
        CheckedDatasetMapper(config(), is_train=True)(record)


def test_detectron2s_mapper_scales_16_bits(record):
    Image.fromarray(np.full((50, 100), 1000, np.uint16)).save(record["file_name"])
    image = CheckedDatasetMapper(config(), is_train=False)(record)["image"]
    assert image.unique().tolist() == [(1000 + 128) // 257]


def test_detectron2s_mapper_is_detectron2s(record):
    cfg = config()
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN = "none", (80,)
    cfg.MODEL.MASK_ON = True
    for is_train in (True, False):
        found, wanted = (
            kind(cfg, is_train=is_train)(record) for kind in (CheckedDatasetMapper, DatasetMapper)
        )
        assert found.keys() == wanted.keys()
        for key in ("image", "sem_seg"):
            assert found[key].equal(wanted[key])
        if is_train:
            fields = found["instances"].get_fields()
            assert fields.keys() == wanted["instances"].get_fields().keys()
            assert fields["gt_boxes"].tensor.equal(wanted["instances"].gt_boxes.tensor)
            assert fields["gt_classes"].equal(wanted["instances"].gt_classes)


def test_mask_of_another_size(record):
    record["annotations"][0]["segmentation"] = mask_util.encode(np.ones((40, 100), np.uint8, order="F"))
    with pytest.raises(
        ValueError, match=r"image.png is of size \(50, 100\), but the RLE mask .* of \(40, 100\)"
    ):
        mapper(STRETCH)(record)


def test_labels_of_another_size(record):
    Image.new("L", (90, 50)).save(record["sem_seg_file_name"])
    with pytest.raises(
        ValueError, match=r"labels.png is of size \(50, 90\), its image .*image.png of \(50, 100\)"
    ):
        mapper(STRETCH)(record)


def test_image_of_another_size_than_the_annotations_say(record):
    with pytest.raises(SizeMismatchError, match=r"image.png, got \(100, 50\), expect \(120, 50\)"):
        mapper(STRETCH)({**record, "width": 120})


def truncate(record):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 100, 3)).astype(np.uint8)
    path = record["file_name"].replace("image.png", "cut.jpg")
    Image.fromarray(pixels).save(path)
    with open(path, "r+b") as file:
        file.truncate(3000)
    return {**record, "file_name": path}


def no_image(record):
    path = record["file_name"].replace("image.png", "text.jpg")
    with open(path, "w") as file:
        file.write("no image")
    return {**record, "file_name": path}


def absent(record):
    return {**record, "file_name": record["file_name"].replace("image.png", "absent.jpg")}


@pytest.mark.parametrize("damage", [truncate, no_image, absent])
def test_broken_image_stops_with_its_name(record, damage):
    broken = damage(record)
    for is_train in (True, False):
        with pytest.raises(
            BrokenImageError, match=r"cannot read the image .*jpg .*INPUT.SKIP_BROKEN True"
        ) as error:
            mapper(STRETCH, is_train=is_train)(broken)
        assert broken["file_name"] in str(error.value)


def test_broken_image_can_be_skipped_in_training_only(record, caplog):
    broken = truncate(record)
    skipping = mapper(STRETCH, skip_broken=True)
    with caplog.at_level(logging.WARNING):
        assert skipping(broken) is None
        assert skipping(broken) is None
    assert caplog.text.count(broken["file_name"]) == 1
    with pytest.raises(BrokenImageError):
        mapper(STRETCH, is_train=False, skip_broken=True)(broken)


def test_training_goes_on_with_another_image(record):
    cfg = config()
    cfg.INPUT.SKIP_BROKEN = True
    loader = build_detection_train_loader(
        [{**truncate(record), "image_id": 1}, {**record, "image_id": 2}],
        mapper=AlbumentationsMapper(cfg, is_train=True),
        total_batch_size=1,
        num_workers=0,
        aspect_ratio_grouping=False,
    )
    assert [batch[0]["image_id"] for batch in itertools.islice(loader, 6)] == [2] * 6
