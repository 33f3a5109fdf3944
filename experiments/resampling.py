"""A bootstrap of COCO's box AP: how much it depends on which images the test set happens to hold."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Which of COCO's IoU thresholds, 0.50 to 0.95, a measure averages over
THRESHOLDS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}


def resampled_ap(annotation_file, results_file, names=("AP", "AP50"), samples=200, seed=0):
    """COCO's box AP on test sets that are drawn, image by image and with replacement, from one test set.

    The draws depend on `samples`, `seed` and the sorted image ids alone: two detectors on the same set can be
    compared draw by draw. A class without an object in a draw is left out of its mean, as COCO does.

    Args:
        annotation_file (str or Path): the truth in COCO's instances format, with ``iscrowd``: ``json_file``
            in the metadata of the data set.
        results_file (str or Path): detections in COCO's results format; there may be none.
        names (sequence of str): of AP (IoU 0.50 to 0.95), AP50 and AP75; all areas, 100 detections an image.
        samples (int): how many test sets are drawn.
        seed (int): of the draws.

    Returns:
        dict[str, list[float]]: name -> percent on each draw; NaN if no class has an object in it.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not json, or the results are no detections of images of the set.

    Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every step
        truth = COCO(str(annotation_file))
        results = _read_results(results_file, truth.imgs)
        evaluation = COCOeval(truth, truth.loadRes(results) if results else COCO(), "bbox")
        parameters = evaluation.params
        parameters.areaRng, parameters.areaRngLbl, parameters.maxDets = [[0, 1e10]], ["all"], [100]
        evaluation.evaluate()
    number = len(parameters.imgIds)
    found = evaluation.evalImgs  # one a class and image, the images of a class one after the other
    by_class = [found[start : start + number] for start in range(0, len(found), number)]
    classes = [_matches(images) for images in by_class if any(images)]
    drawn = {name: [] for name in names}
    for counts in draws(number, samples, seed):
        precisions = [_precisions(*matches, counts, parameters.recThrs) for matches in classes]
        present = [one for one in precisions if one is not None]
        for name, values in drawn.items():
            mean = np.mean(np.array(present)[:, THRESHOLDS[name]]) if present else math.nan
            values.append(100 * float(mean))
    return drawn


def draws(number, samples, seed):
    """Array (samples, number) of int: how often each of `number` images is in each drawn set of as many."""
    # Unlike those of newer generators, these numbers are the same with every version of NumPy.
    generator = np.random.RandomState(seed)
    chosen = generator.randint(number, size=(samples, number), dtype=np.int64)
    return np.array([np.bincount(one, minlength=number) for one in chosen])


def _read_results(path, images):
    results = json.loads(Path(path).read_text())
    try:
        numbers = [(*entry["bbox"], entry["score"], entry["category_id"]) for entry in results]
        sound = np.isfinite(np.array(numbers, float)).all() and all(
            len(row) == 6 and entry["image_id"] in images for row, entry in zip(numbers, results, strict=True)
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"{path} must be a list of detections (image_id, category_id, bbox of four numbers, score) "
            "of images of the annotation file: evaluate again on this data set"
        )
    return results


def _matches(found):
    """What COCOeval found of one class in each image, None for nothing, with detections sorted by score.

    Returns:
        tuple: int arrays, the image of each of N detections (N,) and the number of objects of each image
        (images,), without crowds; bool arrays (thresholds, N), whether a detection is right and whether it is
        wrong. It is neither if COCO ignores it, because it belongs to a crowd.
    """
    objects = np.array([0 if one is None else np.sum(one["gtIgnore"] == 0) for one in found])
    there = [(image, one) for image, one in enumerate(found) if one is not None]
    order = np.argsort([-score for _, one in there for score in one["dtScores"]], kind="stable")
    image = np.array([image for image, one in there for _ in one["dtScores"]], int)[order]
    matched = np.concatenate([one["dtMatches"] for _, one in there], axis=1)[:, order] != 0
    counts = ~np.concatenate([one["dtIgnore"] for _, one in there], axis=1)[:, order].astype(bool)
    return image, objects, matched & counts, ~matched & counts


def _precisions(image, objects, right, wrong, counts, recalls):
    """Array (thresholds,): a class's precision, averaged over recalls; None if it has no object.

    `counts` (images,) says how often each image is in the set. The copies of a detection lie side by side in
    the order of scores. COCO's precision at a recall is the highest at this recall or above: of the copies of
    a right detection the last has the highest, and at wrong ones it only falls. So the last copy is enough.
    """
    total = counts @ objects
    if total == 0:
        return None
    right = np.cumsum(right * counts[image], axis=1)
    wrong = np.cumsum(wrong * counts[image], axis=1)
    # What lies beyond the recall that is reached has precision 0: the last column.
    precision = np.pad(right / np.maximum(right + wrong, 1), ((0, 0), (0, 1)))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    rows = zip(highest, right / total, strict=True)
    return np.array([row[np.searchsorted(reached, recalls)].mean() for row, reached in rows])
