import numpy as np
import pytest
from detectron2.config import get_cfg

from iso_d2.config import add_iso_config
from iso_d2.data.labels import LabelRange

KEYS = "MODEL.SEM_SEG_HEAD.NUM_CLASSES and IGNORE_VALUE"


@pytest.mark.parametrize(
    "labels",
    [
        np.array([[0, 1], [2, 3]], np.uint8),
        np.array([[0, 255], [3, 255]], np.uint8),
        np.full((2, 2), 255, np.int64),
        np.array([[False, True]]),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_labels_within_range_or_ignored(labels):
    LabelRange(4, 255, KEYS).check(labels, "a.png")


@pytest.mark.parametrize(
    "labels, num_classes, ignore_value, named",
    [
        (np.array([[0, 4], [255, 9]], np.uint8), 4, 255, "4, 9"),
        (np.array([0, 255], np.uint8), 2, 254, "255"),
        (np.array([-1, 1]), 2, 255, "-1"),
        (np.array([-1, 2]), 2, -1, "2"),
        (np.arange(20), 2, 255, "2, 3, 4, 5, 6, 7, 8, 9 and others"),
    ],
)
def test_other_labels_are_named(labels, num_classes, ignore_value, named):
    message = (
        rf"^b/a.png holds the labels {named}, but the model tells the classes 0 to {num_classes - 1} "
        rf"apart and ignores {ignore_value}\. .*MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    )
    with pytest.raises(ValueError, match=message):
        LabelRange(num_classes, ignore_value, KEYS).check(labels, "b/a.png")


def test_the_ignored_value_may_be_negative():
    LabelRange(2, -1, KEYS).check(np.array([[-1, 0], [1, -1]]), "a.png")


def test_without_an_ignored_label():
    with pytest.raises(
        ValueError, match=r"^x holds the labels 255, .* 0 to 1 apart\. .*0/255 must become 0/1"
    ):
        LabelRange(2, None, "KEY").check(np.array([0, 255]), "x")


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("ImageClassifier", {"MODEL.CLASSIFIER.NUM_CLASSES": 7}, (7, None)),
        ("UNetSegmentor", {}, (2, None)),
        ("UNetSegmentor", {"MODEL.UNET.NUM_CLASSES": 3}, (3, 255)),
        ("SemanticSegmentor", {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4}, (4, 255)),
        ("GeneralizedRCNN", {}, None),
    ],
)
def test_the_model_decides(architecture, changes, expected):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.merge_from_list([part for item in changes.items() for part in item])
    label_range = LabelRange.from_config(cfg)
    assert (label_range if label_range is None else label_range[:2]) == expected
