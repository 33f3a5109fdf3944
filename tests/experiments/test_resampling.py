import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from toy_boxes import write_boxes

from experiments.resampling import draws, resampled_ap

BOX = [0, 0, 10, 10]


def coco_ap(annotations, results):
    """What COCO itself makes of two files: AP, AP50, AP75 in percent, -100 without objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[:3]


def scenes(images, seed):
    """Objects of two classes, some of them crowds, class 3 in the last image alone; detections near and far.

    Scores are equal between images, but not within one.
    """
    generator = np.random.default_rng(seed)
    objects, detections = [], []
    for image in images[:-2]:  # the last but one is empty, and has detections nevertheless
        for category in (1, 2):
            for _ in range(generator.integers(4)):
                box = [*generator.uniform(0, 60, 2), *generator.uniform(10, 40, 2)]
                objects.append((image, category, box, generator.random() < 0.2))
    objects.append((images[-1], 3, BOX))
    for number, (image, category, box, *_) in enumerate(objects):
        for near in range(number % 4):
            moved = [value + shift for value, shift in zip(box, generator.normal(0, 2, 4), strict=True)]
            detections.append([image, category if near < 2 else 2, moved])
    # The last is larger than what COCO counts.
    for category, side in ((1, 20), (2, 20), (3, 20), (1, 2e5)):
        detections.append([images[-2], category, [5, 5, side, side]])
    places = {image: iter(generator.permutation(40) / 40) for image in images}
    return objects, [(*detection, float(next(places[detection[0]]))) for detection in detections]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_draw_is_a_test_set_whose_images_are_copied(tmp_path, seed):
    images = [3, 5, 8, 13, 21, 34, 55, 89]
    objects, detections = scenes(images, seed)
    files = write_boxes(tmp_path, images, objects, detections)
    found = resampled_ap(*files, ("AP", "AP50", "AP75"), 25, seed)
    counts = draws(len(images), 25, seed)
    assert 0 in counts[:, -1] and counts[:, -1].any(), "class 3 must be in some draws and not in others"
    for number, drawn in enumerate(counts):
        ids = {
            image: [100 * image + n for n in range(often)] for image, often in zip(images, drawn, strict=True)
        }
        copied = [
            [(copy, *rest) for image, *rest in one for copy in ids[image]] for one in (objects, detections)
        ]
        expected = coco_ap(*write_boxes(tmp_path, [copy for image in images for copy in ids[image]], *copied))
        assert [values[number] for values in found.values()] == pytest.approx(expected, abs=1e-9)


def test_two_images_by_hand(tmp_path):
    # IoU 0.62 in the first image: right at 3 of 10 thresholds. Nothing is right in the second. Of both, half
    # of the objects are found, with precision 1 at the recalls 0, 0.01, ..., 0.5, which are 51 of 101.
    objects = [(1, 1, BOX), (2, 1, BOX)]
    detections = [(1, 1, [0, 0, 6.2, 10], 0.9), (2, 1, [50, 50, 9, 9], 0.8)]
    found = resampled_ap(*write_boxes(tmp_path, [1, 2], objects, detections))
    assert list(found) == ["AP", "AP50"] and len(found["AP"]) == 200
    both = 100 * 51 / 101
    for values, whole in ((found["AP50"], 1), (found["AP"], 0.3)):
        assert sorted(set(np.round(values, 9))) == pytest.approx([0, whole * both, whole * 100])
    # The draws 1 1, 1 2, 2 1 and 2 2 are equally frequent: 50 are expected of each, give or take 4 times 6.
    shares = [found["AP50"].count(value) for value in (0.0, 100.0)]
    assert all(abs(share - 50) < 25 for share in shares)


def test_draws_depend_on_the_seed_and_the_number_alone():
    counts = draws(30, 40, seed=7)
    assert counts.shape == (40, 30) and (counts.sum(axis=1) == 30).all()
    assert (counts == draws(30, 40, seed=7)).all() and (counts != draws(30, 40, seed=8)).any()
    # NumPy guarantees this generator's numbers for ever: 5 0 3 3 7 9 3 5 2 4.
    assert draws(10, 1, seed=0).tolist() == [[1, 0, 1, 3, 1, 2, 0, 1, 0, 1]]


def test_the_order_in_the_files_changes_nothing(tmp_path):
    images = list(range(1, 9))
    objects, detections = scenes(images, 3)
    forward = resampled_ap(*write_boxes(tmp_path, images, objects, detections))
    backward = resampled_ap(*write_boxes(tmp_path, images[::-1], objects[::-1], detections[::-1]))
    assert forward["AP"] == pytest.approx(backward["AP"]) and len(set(forward["AP"])) > 20


def test_without_detections_or_objects(tmp_path):
    none = resampled_ap(*write_boxes(tmp_path, [1, 2], [(1, 1, BOX), (2, 2, BOX)], []), samples=3)
    assert none == {"AP": [0.0] * 3, "AP50": [0.0] * 3}
    sparse = resampled_ap(*write_boxes(tmp_path, [1, 2], [(1, 1, BOX)], [(1, 1, BOX, 0.5)]), ("AP",))["AP"]
    assert {100.0} == {round(value, 9) for value in sparse if not math.isnan(value)}
    assert any(math.isnan(value) for value in sparse)


GOOD = {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}


@pytest.mark.parametrize(
    "content",
    [
        {"image_id": 1},
        7,
        [7],
        [{**GOOD, "image_id": 9}],
        [{**GOOD, "image_id": []}],
        [{**GOOD, "bbox": BOX[:3]}],
        [GOOD, {**GOOD, "bbox": BOX[:3]}],
        [{**GOOD, "score": math.nan}],
        [{**GOOD, "score": "high"}],
        [{"image_id": 1, "category_id": 1, "score": 0.5}],
    ],
)
def test_results_that_are_none_are_named(tmp_path, content):
    annotations, results = write_boxes(tmp_path, [1], [(1, 1, BOX)], [])
    results.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"results\.json must be a list of detections .* evaluate again"):
        resampled_ap(annotations, results)
    results.write_text(json.dumps([GOOD]))
    assert resampled_ap(annotations, results, samples=1)["AP50"] == pytest.approx([100])
    results.write_text('[{"image_id": 1')
    with pytest.raises(ValueError, match="delimiter"):
        resampled_ap(annotations, results)
