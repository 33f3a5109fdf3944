import numpy as np
import pytest
from scipy import stats

from iso_d2.evaluation.build import METRICS
from iso_d2.evaluation.segmentation_metrics import (
    Overlap,
    bootstrap_interval,
    hausdorff95,
    largest_component,
    measure,
    soft_dice_loss,
    soft_iou,
    spread,
    table,
)

P = np.array([[0.5, 1.0], [0.25, 0.0]], np.float32)
Q = np.array([[1, 1], [0, 0]], np.uint8)
EMPTY = np.zeros((2, 2), np.uint8)


@pytest.mark.parametrize("smooth", [0.0, 1.0, 0.5])
def test_soft_measures_by_hand(smooth):
    # sum PQ = 1.5, sum P^2 = 1.3125, sum P = 1.75, sum Q = sum Q^2 = 2
    assert soft_dice_loss(P, Q, smooth) == pytest.approx(1 - (3 + smooth) / (3.3125 + smooth))
    assert soft_iou(P, Q, smooth) == pytest.approx((1.5 + smooth) / (2.25 + smooth))


def test_soft_measures_without_tumour():
    # sum P^2 = 1.3125, sum P = 1.75: the literal form has no overlap at all, eps makes it depend on P
    assert soft_dice_loss(P, EMPTY, 0.0) == 1
    assert soft_dice_loss(P, EMPTY, 1.0) == pytest.approx(1 - 1 / 2.3125)
    assert soft_iou(P, EMPTY, 1.0) == pytest.approx(1 / 2.75)
    for smooth in (0.0, 1.0):
        assert soft_dice_loss(EMPTY, EMPTY, smooth) == 0
        assert soft_iou(EMPTY, EMPTY, smooth) == 1


def test_float32_is_summed_in_float64():
    # 1 / 3 has an error of 1e-8 in float32, which stays; squared and summed there it would be 1e-7 or more.
    p = np.full((300, 300), 1 / 3, np.float32)
    value = float(np.float32(1 / 3))
    expected = 1 - 2 * value / (value * value + 1)
    assert soft_dice_loss(p, np.ones((300, 300), bool), 0.0) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    "prediction, truth, dice, iou",
    [
        ([[1, 1, 0]], [[0, 1, 1]], 2 / 4, 1 / 3),
        ([[1, 1, 1]], [[0, 1, 0]], 2 / 4, 1 / 3),
        ([[1, 0, 0]], [[0, 1, 1]], 0, 0),
        ([[0, 0, 0]], [[0, 0, 0]], 1, 1),
        ([[1, 0, 0]], [[0, 0, 0]], 0, 0),
        ([[0, 0, 0]], [[1, 0, 0]], 0, 0),
    ],
)
def test_overlap_of_masks(prediction, truth, dice, iou):
    overlap = Overlap.of(np.array(prediction, bool), np.array(truth, bool))
    assert (overlap.dice, overlap.iou) == pytest.approx((dice, iou))


def test_volume_is_not_the_mean_of_its_slices():
    slices = [Overlap(intersection=4, predicted=4, true=4), Overlap(intersection=0, predicted=0, true=8)]
    assert Overlap.total(slices) == (4, 4, 12)
    assert Overlap.total(slices).dice == 8 / 16


def test_largest_component_joins_slices_and_corners():
    volume = np.zeros((3, 4, 4), bool)
    volume[0, 0, 0] = volume[1, 1, 1] = volume[2, 2, 2] = True  # touch by corners only
    volume[0, 3, 2:] = True  # two pixels
    expected = volume.copy()
    expected[0, 3, 2:] = False
    assert (largest_component(volume) == expected).all()


def test_largest_component_needs_adjacent_slices():
    volume = np.zeros((3, 2, 2), bool)
    volume[0, 0, 0] = True
    volume[2] = True
    kept = largest_component(volume)
    assert kept[2].all() and kept.sum() == 4


def test_largest_component_of_nothing():
    assert not largest_component(np.zeros((2, 3, 3), bool)).any()


def test_spread():
    # Five values, so that the quartiles are the second and the fourth
    assert spread([5, 1, 3, 2, 9]) == {"mean": 4, "median": 3, "q1": 2, "q3": 5, "min": 1}
    assert spread([7.0]) == {"mean": 7, "median": 7, "q1": 7, "q3": 7, "min": 7}


def record(dice_loss, soft_iou, *overlap):
    return {"dice_loss": dice_loss, "soft_iou": soft_iou, "overlap": Overlap(*overlap)}


SLICES = [
    record(0.1, 0.9, 6, 8, 8),  # Dice 12/16, IoU 6/10
    record(0.5, 0.5, 0, 2, 4),  # missed: Dice 0
    record(0.0, 1.0, 0, 0, 0),  # rightly empty
    record(0.8, 0.2, 0, 5, 0),  # false alarm
    record(0.1, 0.4, 0, 0, 0),
]


def test_measures_by_hand():
    metrics = measure(SLICES, [Overlap(6, 10, 12), Overlap(0, 5, 0)])
    assert metrics == pytest.approx(
        {
            "dice_loss": 0.3,
            "mean_iou": 60,
            "slice_dice": 100 * (0.75 + 0 + 1 + 0 + 1) / 5,
            "slice_iou": 100 * (0.6 + 0 + 1 + 0 + 1) / 5,
            "dice_loss_tumour": 0.3,
            "mean_iou_tumour": 70,
            "slice_dice_tumour": 37.5,
            "slice_iou_tumour": 30,
            "volume_dice_mean": 100 * 6 / 11 / 2,
            "volume_dice_median": 100 * 6 / 11 / 2,
            "volume_dice_q1": 100 * 6 / 11 / 4,
            "volume_dice_q3": 100 * 6 / 11 * 3 / 4,
            "volume_dice_min": 0,
            "detection_rate": 50,
            "false_alarm_rate": 100 / 3,
        }
    )
    assert all(type(value) is float for value in metrics.values())
    named = {name.removeprefix("segmentation/") for name in METRICS["medical_segmentation"]}
    assert named - set(metrics) == {"hd95_mean", "hd95_median"}  # with TEST.SEGMENTATION.SPACING
    assert set(metrics) < named


def test_means_over_nothing_are_left_out():
    healthy = measure(SLICES[2:], [Overlap(0, 5, 0)])
    assert not [key for key in healthy if key.endswith("_tumour") or key == "detection_rate"]
    assert "false_alarm_rate" not in measure(SLICES[:2], [Overlap(6, 10, 12)])
    assert "soft Dice loss            0.3000               -" in table(healthy)


def test_table():
    lines = table(measure(SLICES, [Overlap(6, 10, 12), Overlap(0, 5, 0)])).splitlines()
    assert lines[1].split() == ["soft", "Dice", "loss", "0.3000", "0.3000"]
    assert lines[2].split() == ["soft", "IoU", "(%)", "60.00", "70.00"]
    assert lines[-3].endswith("mean 27.27, median 27.27, q1 13.64, q3 40.91, min 0.00")
    assert lines[-2:] == [
        "tumour slices detected (%): 50.00",
        "tumour-free slices with false alarm (%): 33.33",
    ]


def test_bootstrap_interval_is_that_of_scipy():
    values = [10.0, 40.0, 42.0, 55.0, 71.0, 90.0]
    expected = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=7)
    assert bootstrap_interval(values) == pytest.approx(expected.confidence_interval, abs=1.0)
    low, high = bootstrap_interval(values, confidence=0.5)
    # nearly normal: 0.674 standard errors to either side
    half = 0.674 * np.std(values) / np.sqrt(6)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1.0)
    assert bootstrap_interval([3.0]) == (3.0, 3.0)


def test_hausdorff_of_two_boxes():
    pytest.importorskip("surface_distance")
    box = np.zeros((20, 20, 20), bool)
    box[6:12, 6:12, 6:12] = True
    # every face of the box shifted along one axis is at most the shift away, and the two ends are
    for axis, spacing in enumerate((3.0, 1.0, 0.5)):
        moved = np.roll(box, 4, axis)
        assert hausdorff95(moved, box, (3.0, 1.0, 0.5)) == pytest.approx(4 * spacing)
    assert hausdorff95(box, box, (1, 1, 1)) == 0
    empty = np.zeros_like(box)
    assert hausdorff95(empty, empty, (1, 1, 1)) == 0
    assert hausdorff95(empty, box, (1, 1, 1)) is None
