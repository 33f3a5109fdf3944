"""How well a segmentation agrees with the truth: soft measures of an image, and overlaps of masks.

Everything here is for one object class against the background, in float64. Two empty masks, 0 / 0, agree
fully and give 1. One empty mask gives 0.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage


def soft_dice_loss(probabilities, truth, smooth=1.0):
    """Dice loss of one image, in [0, 1]: 1 - (2 sum PQ + eps) / (sum P^2 + sum Q^2 + eps).

    Args:
        probabilities (ndarray): P in [0, 1], of any shape.
        truth (ndarray): Q, 0 or 1, of the same shape.
        smooth (float): eps; 0 gives the report's literal form, which is 1 if there is no truth and any P is
            above 0.

    Source: report, Section 5.1, with eps, which makes it defined and smooth without truth.
    """
    p, q = probabilities.astype(np.float64), truth.astype(np.float64)
    return 1 - _ratio(2 * (p * q).sum() + smooth, (p * p).sum() + (q * q).sum() + smooth)


def soft_iou(probabilities, truth, smooth=1.0):
    """Intersection over union of one image, in [0, 1]: (sum PQ + eps) / (sum (P + Q - PQ) + eps).

    Args, Source: as for :func:`soft_dice_loss`.
    """
    p, q = probabilities.astype(np.float64), truth.astype(np.float64)
    product = p * q
    return _ratio(product.sum() + smooth, (p + q - product).sum() + smooth)


class Overlap(NamedTuple):
    """How many pixels are in both masks, and in each. For a volume, the sums over its slices."""

    intersection: int
    predicted: int
    true: int

    @classmethod
    def of(cls, prediction, truth):
        """Count two masks, bool ndarrays of one shape."""
        counts = (prediction & truth, prediction, truth)
        return cls(*(int(np.count_nonzero(mask)) for mask in counts))

    @classmethod
    def total(cls, overlaps):
        """Sum of the overlaps of several slices, as one volume."""
        return cls(*(sum(counts) for counts in zip(*overlaps, strict=True)))

    @property
    def dice(self):
        """2 |A and B| / (|A| + |B|), in [0, 1]."""
        return _ratio(2 * self.intersection, self.predicted + self.true)

    @property
    def iou(self):
        """|A and B| / |A or B|, in [0, 1]."""
        return _ratio(self.intersection, self.predicted + self.true - self.intersection)


def _ratio(numerator, denominator):
    return float(numerator / denominator) if denominator else 1.0


def largest_component(volume):
    """Keep the largest connected part of a mask, bool (D, H, W); of equally large ones the first.

    Pixels are connected with all 26 neighbours: slices lie further apart than pixels, so an oblique tumour
    moves by more than a pixel from one to the next.
    """
    labels, _ = ndimage.label(volume, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0  # the background is no component
    return volume & (labels == sizes.argmax())


def hausdorff95(prediction, truth, spacing):
    """95 % Hausdorff distance of two masks: the larger of both directions' 95th percentiles, in mm.

    Each percentile is of the distances of one surface's elements, weighted by area, to the other surface.

    Args:
        prediction, truth (ndarray): bool, (D, H, W).
        spacing (sequence of float): distances of voxels along the three axes, in mm.

    Returns:
        float or None: 0 if both masks are empty, None if one is.

    Raises:
        ImportError: the package surface-distance is missing.

    Source: the library surface-distance, https://github.com/google-deepmind/surface-distance.
    """
    try:
        import surface_distance
    except ImportError as error:
        raise ImportError(
            f"TEST.SEGMENTATION.SPACING asks for surface distances, which need more packages ({error}): "
            "pip install iso_d2[medical], or set it to ()"
        ) from error
    if not (prediction.any() and truth.any()):
        return None if prediction.any() or truth.any() else 0.0
    distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
    return float(surface_distance.compute_robust_hausdorff(distances, 95))


def spread(values):
    """dict[str, float]: mean, median, q1, q3 (interpolated linearly) and min of at least one number."""
    least, q1, median, q3 = np.quantile(np.asarray(values, np.float64), [0, 0.25, 0.5, 0.75]).tolist()
    return {"mean": float(np.mean(values)), "median": median, "q1": q1, "q3": q3, "min": least}


def bootstrap_interval(values, confidence=0.95, resamples=10_000, seed=0):
    """Percentile bootstrap of the mean: where it lies if as many values are drawn anew from these.

    Args:
        values (sequence of float): one a patient, at least one.
        confidence (float): share of the means of the resamples that lies inside.
        resamples (int): how many.
        seed (int): of the draws.

    Returns:
        tuple[float, float]: the lower and the upper end.

    Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    values = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    outside = (1 - confidence) / 2
    low, high = np.quantile(values[drawn].mean(axis=1), [outside, 1 - outside]).tolist()
    return low, high


def measure(slices, volumes):
    """The measures of a set of slices, which SegmentationEvaluator explains.

    Args:
        slices (collection of dict): ``dice_loss`` and ``soft_iou`` (floats in [0, 1]), ``overlap`` (Overlap)
            of each; not empty.
        volumes (iterable of Overlap): of each patient.

    Returns:
        dict[str, float]
    """
    tumour = [record for record in slices if record["overlap"].true > 0]
    healthy = [record for record in slices if record["overlap"].true == 0]
    metrics = {}
    for suffix, records in (("", slices), ("_tumour", tumour)):
        if records:
            metrics[f"dice_loss{suffix}"] = _mean(r["dice_loss"] for r in records)
            metrics[f"mean_iou{suffix}"] = 100 * _mean(r["soft_iou"] for r in records)
            metrics[f"slice_dice{suffix}"] = 100 * _mean(r["overlap"].dice for r in records)
            metrics[f"slice_iou{suffix}"] = 100 * _mean(r["overlap"].iou for r in records)
    for name, value in spread([100 * volume.dice for volume in volumes]).items():
        metrics[f"volume_dice_{name}"] = value
    if tumour:
        metrics["detection_rate"] = 100 * _mean(r["overlap"].intersection > 0 for r in tumour)
    if healthy:
        metrics["false_alarm_rate"] = 100 * _mean(r["overlap"].predicted > 0 for r in healthy)
    return metrics


def _mean(values):
    return float(np.mean(list(values)))


def table(metrics):
    """What :func:`measure` returns, as lines of text."""
    rows = [f"{'':20}{'all slices':>12}{'tumour slices':>16}"]
    for key, name, digits in (
        ("dice_loss", "soft Dice loss", 4),
        ("mean_iou", "soft IoU (%)", 2),
        ("slice_dice", "Dice (%)", 2),
        ("slice_iou", "IoU (%)", 2),
    ):
        values = metrics[key], metrics.get(f"{key}_tumour")
        every, tumour = ("-" if value is None else f"{value:.{digits}f}" for value in values)
        rows.append(f"{name:20}{every:>12}{tumour:>16}")
    volume = (f"{key} {metrics[f'volume_dice_{key}']:.2f}" for key in ("mean", "median", "q1", "q3", "min"))
    rows.append(f"volume Dice of patients (%): {', '.join(volume)}")
    for key, name in (
        ("detection_rate", "tumour slices detected"),
        ("false_alarm_rate", "tumour-free slices with false alarm"),
    ):
        if key in metrics:
            rows.append(f"{name} (%): {metrics[key]:.2f}")
    return "\n".join(rows)
