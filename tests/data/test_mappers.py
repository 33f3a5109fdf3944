import itertools

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.data.common import MapDataset
from mapping import FLIP, STRETCH, annotation, config, mapper, rectangle
from PIL import Image

from iso_d2.data import AlbumentationsMapper, read_image


def extent(mask):
    rows, columns = np.nonzero(np.asarray(mask))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


# Three times as wide, twice as high: x 30 to 90, y 10 to 30; mirrored about 300: x 210 to 270.
@pytest.mark.parametrize(
    ("entries", "expected"), [([STRETCH], [30, 10, 90, 30]), ([STRETCH, FLIP], [210, 10, 270, 30])]
)
def test_resize_and_flip_move_image_box_mask_and_labels_alike(record, entries, expected):
    mapped = mapper(*entries)(record)
    assert mapped["image"].shape == (3, 100, 300)
    assert mapped["image"].dtype == torch.uint8
    assert extent(mapped["image"][0] == 255) == expected
    instances = mapped["instances"]
    assert instances.image_size == (100, 300)
    assert instances.gt_boxes.tensor.tolist() == [pytest.approx(expected, abs=1e-3)]
    assert instances.gt_classes.tolist() == [2]
    assert extent(instances.gt_masks.tensor[0]) == expected
    assert mapped["sem_seg"].dtype == torch.int64
    assert extent(mapped["sem_seg"] == 2) == expected
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (50, 100, 4)


def test_the_record_is_not_changed(record):
    before = str(record)
    mapper(STRETCH, FLIP)(record)
    assert str(record) == before


@pytest.mark.parametrize(("image_format", "red"), [("RGB", 0), ("BGR", 2)])
def test_channel_order(record, image_format, red):
    image = mapper(image_format=image_format)(record)["image"]
    assert image[:, 6, 11].tolist() == [255 * (channel == red) for channel in range(3)]


def test_colour_transforms_see_rgb_whatever_the_format(record):
    entry = ["ToGray", {"p": 1.0}]
    rgb, bgr = (mapper(entry, image_format=f)(record)["image"] for f in ("RGB", "BGR"))
    # The luminance of pure red is 0.299 * 255 = 76; that of pure blue is 29.
    assert rgb[:, 6, 11].tolist() == bgr[:, 6, 11].tolist() == [76, 76, 76]


def test_rle_and_polygons_give_the_same_mask(record):
    polygons = mapper(STRETCH)(record)["instances"].gt_masks.tensor
    mask = np.zeros((50, 100), np.uint8, order="F")
    mask[5:15, 10:30] = 1
    record["annotations"][0]["segmentation"] = mask_util.encode(mask)
    assert torch.equal(mapper(STRETCH)(record)["instances"].gt_masks.tensor, polygons)


def test_masks_suit_the_mask_head(record):
    instances = mapper(STRETCH, FLIP)(record)["instances"]
    targets = instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, 28)
    assert targets.shape == (1, 28, 28)
    assert targets.all()


def test_boxes_that_leave_the_image_go_with_their_labels_and_masks(record):
    boxes = [[60, 5, 20, 10], [10, 5, 20, 10], [40, 20, 20, 10], [51, 0, 9, 9]]
    record["annotations"] = [
        annotation(box, category, segmentation=rectangle(*box)) for category, box in enumerate(boxes)
    ]
    crop = ["Crop", {"x_min": 0, "y_min": 0, "x_max": 50, "y_max": 50}]
    instances = mapper(crop)(record)["instances"]
    assert instances.gt_classes.tolist() == [1, 2]
    assert instances.gt_boxes.tensor.tolist() == [
        pytest.approx([10, 5, 30, 15], abs=1e-3),
        pytest.approx([40, 20, 50, 30], abs=1e-3),
    ]
    assert [extent(mask) for mask in instances.gt_masks.tensor] == [[10, 5, 30, 15], [40, 20, 50, 30]]


def test_no_box_is_left(record):
    crop = ["Crop", {"x_min": 50, "y_min": 0, "x_max": 100, "y_max": 50}]
    instances = mapper(crop)(record)["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.shape == (0,)
    assert instances.gt_masks.tensor.shape == (0, 50, 50)


def test_box_that_sticks_out_by_rounding_is_clipped(record):
    record["annotations"] = [annotation([90, 40, 10.01, 10.01]), annotation([-0.01, -0.01, 5, 5])]
    boxes = mapper(use_instance_mask=False)(record)["instances"].gt_boxes.tensor
    assert boxes.tolist() == [
        pytest.approx([90, 40, 100, 50], abs=1e-3),
        pytest.approx([0, 0, 4.99, 4.99], abs=1e-3),
    ]


def test_crowds_are_left_out(record):
    crowd = annotation([0, 0, 90, 40], category=1, segmentation=rectangle(0, 0, 90, 40))
    record["annotations"].insert(0, {**crowd, "iscrowd": 1})
    assert mapper(STRETCH)(record)["instances"].gt_classes.tolist() == [2]


def test_inference_has_no_annotations_and_keeps_the_original_size(record):
    mapped = mapper(STRETCH, is_train=False)(record)
    assert mapped.keys() == {"file_name", "image_id", "height", "width", "image", "sem_seg"}
    assert mapped["image"].shape == (3, 100, 300)
    assert (mapped["height"], mapped["width"]) == (50, 100)


def test_orientation_from_the_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (60, 40)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", "RGB").shape == (60, 40, 3)


def agree_with_detectron2(dicts, use_masks):
    ours = mapper(["Resize", {"height": 512, "width": 512}], use_instance_mask=use_masks)
    theirs = DatasetMapper(
        is_train=True,
        augmentations=[T.Resize((512, 512))],
        image_format="RGB",
        use_instance_mask=use_masks,
        instance_mask_format="bitmask",
    )
    for record in dicts:
        got, expected = ours(record), theirs(record)
        boxes = expected["instances"].gt_boxes.tensor
        torch.testing.assert_close(got["instances"].gt_boxes.tensor, boxes.float(), atol=1e-3, rtol=0)
        assert torch.equal(got["instances"].gt_classes, expected["instances"].gt_classes)
        # Pillow averages where it shrinks, OpenCV does not: the same picture, not the same pixels.
        assert (got["image"].float() - expected["image"].float()).abs().mean() < 6
        if use_masks:
            a, b = got["instances"].gt_masks.tensor, expected["instances"].gt_masks.tensor
            assert ((a & b).sum((1, 2)) / (a | b).sum((1, 2))).min() > 0.85


def test_agrees_with_detectron2_on_generated_images():
    agree_with_detectron2(DatasetCatalog.get("shapes_test")[:3], use_masks=True)


def test_agrees_with_detectron2_on_real_images(real_data):
    real_data("coco", "val2017")
    agree_with_detectron2(DatasetCatalog.get("coco_pbc_test")[:3], use_masks=False)


def flips(mapped):
    """Whether each image was mirrored horizontally and vertically, seen by where the red rectangle is."""
    boxes = [extent(m["image"][0] == 255) for m in mapped]
    return [(x > 50, y > 25) for x, y, _, _ in boxes]


BOTH_FLIPS = ["HorizontalFlip", {"p": 0.5}], ["VerticalFlip", {"p": 0.5}]


def test_two_workers_augment_differently_and_follow_the_seed(record):
    data = MapDataset([record] * 32, mapper(*BOTH_FLIPS))
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2
    )  # even: worker 0, odd: worker 1

    def epoch():
        return flips(loader)

    torch.manual_seed(1)
    first, second = epoch(), epoch()
    torch.manual_seed(1)
    assert epoch() == first, "the same seed must give the same augmentations"
    assert first[::2] != first[1::2], "both workers made the same augmentations"
    assert first != second, "two epochs made the same augmentations"


def test_transforms_of_one_pipeline_are_independent(record):
    torch.manual_seed(0)
    seen = set(flips(map(mapper(*BOTH_FLIPS), [record] * 64)))
    assert seen == set(itertools.product([False, True], repeat=2))


def test_from_config_in_detectron2s_loaders(record):
    cfg = config(train=[STRETCH, FLIP])
    cfg.MODEL.MASK_ON = True
    train = build_detection_train_loader(
        [record] * 4,
        mapper=AlbumentationsMapper(cfg, is_train=True),
        total_batch_size=2,
        num_workers=2,
        aspect_ratio_grouping=False,
    )
    batch = next(iter(train))
    for mapped in batch:
        assert mapped["instances"].gt_boxes.tensor.tolist() == [pytest.approx([210, 10, 270, 30], abs=1e-3)]
    assert batch[0]["image"][:, 20, 220].tolist() == [0, 0, 255], "INPUT.FORMAT is BGR by default"
    test = build_detection_test_loader([record], mapper=AlbumentationsMapper(cfg, is_train=False))
    assert extent(next(iter(test))[0]["image"][2] == 255) == [30, 10, 90, 30]


def test_images_and_labels_that_are_arrays_move_alike():
    labels = np.zeros((50, 100), np.uint8)
    labels[5:15, 10:30] = 1
    record = {"image_array": np.stack([255 * labels] * 3), "sem_seg_array": labels, "patient": "a"}
    mapped = mapper(STRETCH, FLIP)(record)
    assert mapped.keys() == {"image", "sem_seg", "patient"}
    assert mapped["sem_seg"].dtype == torch.int64
    for mask in (mapped["image"][0] == 255, mapped["sem_seg"] == 1):
        assert extent(mask) == [210, 10, 270, 30]
    assert record["sem_seg_array"] is labels
