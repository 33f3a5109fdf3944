import numpy as np
import pytest

from iso_d2.data.label_checks import check_labels


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
    check_labels(labels, 4, 255, "a.png")


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
        check_labels(labels, num_classes, ignore_value, "b/a.png")


def test_the_ignored_value_may_be_negative():
    check_labels(np.array([[-1, 0], [1, -1]]), 2, -1, "a.png")
