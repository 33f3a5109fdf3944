"""Evaluator of a medical segmentation: by slice as in the report, and by patient as in the field."""

import json
import logging
import os
from dataclasses import dataclass

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..files import as_csv, read_image, write_atomically
from .masks import read_mask
from .segmentation_metrics import (
    Overlap,
    hausdorff95,
    largest_component,
    measure,
    soft_dice_loss,
    soft_iou,
    table,
)
from .segmentation_pictures import PANELS, draw_slice, draw_volume_dice
from .visualization import index_pictures

logger = logging.getLogger(__name__)

# How far the rounding of a softmax and of interpolation may take probabilities out of [0, 1]
ROUNDING = 1e-4


@dataclass(eq=False)
class SegmentationEvaluator(DatasetEvaluator):
    """Soft Dice loss and IoU of slices, Dice and IoU of masks, volume Dice of patients, detected slices.

    Foreground is every class but the background: the probability of a sigmoid (one channel), or 1 minus that
    of class 0 of a softmax. A slice has a tumour if its original mask has. Two empty masks agree fully, 1;
    one empty mask gives 0.

    ======================================  =================================================================
    dice_loss, mean_iou                     the report's, of probabilities, on the model's input grid
    dice_loss_tumour, mean_iou_tumour       the same over the slices with tumour only
    slice_dice, slice_iou (_tumour)         means over slices of thresholded masks, on the original grid
    volume_dice_mean, median, q1, q3, min   over patients; the mask of a patient is that of all its slices
    detection_rate                          share of tumour slices where prediction and truth share a pixel
    false_alarm_rate                        share of tumour-free slices with any predicted pixel
    hd95_mean, hd95_median                  95 % Hausdorff distance of patients, in mm, with ``spacing``
    ======================================  =================================================================

    All but the losses and distances are in percent. A distance is left out where one of the masks is empty,
    and so is a mean over no slices; a mean over no distances is NaN. The results of all processes are
    combined; a slice (``image_id``) that several of them had counts once.

    Args:
        dataset_name (str): for the log.
        output_folder (str): for ``segmentation.json``, with every patient and slice, ``patients.csv`` and
            ``volume_dice.png``; made if absent.
        smooth (float): eps of the report's measures.
        threshold (float): probability from which on a pixel is foreground.
        largest_component (bool): keep only the largest connected part of each patient's predicted mask, in
            everything but the report's measures. For sets that hold whole patients.
        spacing (sequence of float): (slice, row, column), distances in mm, the same for all patients; empty:
            no surface distances.
        pictures_folder (str or None): for ``rank_001.png`` (the best patient) and so on, which show the slice
            with the most tumour. Each evaluation overwrites the pictures of the one before.
        num_pictures (int): how many patients to draw, spread evenly from the best to the worst.

    Raises:
        ValueError: in :meth:`process`, predictions are no probabilities (NaN, say) or differ in size from the
            truth, or a mask file holds other values than 0 and 255.
    """

    dataset_name: str
    output_folder: str
    smooth: float = 1.0
    threshold: float = 0.5
    largest_component: bool = False
    spacing: tuple = ()
    pictures_folder: str | None = None
    num_pictures: int = 0

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ValueError(
                f"TEST.SEGMENTATION.THRESHOLD must be a probability above 0, got {self.threshold}"
            )
        if self.smooth < 0:
            raise ValueError(f"TEST.SEGMENTATION.SMOOTH must be 0 or more, got {self.smooth}")
        if len(self.spacing) not in (0, 3) or not all(distance > 0 for distance in self.spacing):
            raise ValueError(
                "TEST.SEGMENTATION.SPACING must be () or three distances above 0 in mm, of slices, rows and "
                f"columns, got {self.spacing}"
            )
        if self.spacing:
            hausdorff95(np.zeros(1, bool), np.zeros(1, bool), self.spacing)  # is the library there?
        self.num_pictures = self.num_pictures if self.pictures_folder else 0

    def reset(self):
        self._slices = {}  # image_id -> record
        self._shown = {}  # patient -> what a picture of its slice with the most tumour needs

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs, strict=True):
            probabilities = _foreground(output["probabilities"], image, "probabilities")
            label = image["sem_seg"].cpu().numpy() > 0
            original = _foreground(output["sem_seg"], image, "sem_seg")
            truth = read_mask(image["mask_file_name"])
            _check_size(probabilities, label, f"the probabilities of {image['file_name']}", "its label")
            _check_size(original, truth, f"the sem_seg of {image['file_name']}", image["mask_file_name"])

            prediction = original >= self.threshold
            overlap = Overlap.of(prediction, truth)
            self._slices[image["image_id"]] = record = {
                **{key: image[key] for key in ("image_id", "patient", "slice")},
                "dice_loss": soft_dice_loss(probabilities, label, self.smooth),
                "soft_iou": soft_iou(probabilities, label, self.smooth),
                "overlap": overlap,
            }
            if self.largest_component or self.spacing:
                record["masks"] = np.packbits([prediction, truth], axis=None), truth.shape
            key = (overlap.true, overlap.predicted)
            shown = self._shown.get(image["patient"])
            if self.num_pictures and (shown is None or key > shown["key"]):
                self._shown[image["patient"]] = {
                    "key": key,
                    **{name: image[name] for name in ("image_id", "file_name", "mask_file_name")},
                    "probabilities": np.rint(255 * original).astype(np.uint8),
                    "prediction": np.packbits(prediction),
                }

    def evaluate(self):
        """Combine what the processes have seen.

        Returns:
            dict: in the main process ``{"segmentation": {measure: float}}``; in others, and if there were no
            slices, an empty dict.
        """
        parts = comm.gather((self._slices, self._shown))
        if not comm.is_main_process():
            return {}
        slices = {key: record for part, _ in parts for key, record in part.items()}
        if not slices:
            logger.warning("No slices of %s were evaluated", self.dataset_name)
            return {}
        patients = {}
        for record in sorted(slices.values(), key=lambda record: (record["patient"], record["slice"])):
            patients.setdefault(record["patient"], []).append(record)
        kept = {}
        if self.largest_component:
            for records in patients.values():
                if records[-1]["slice"] - records[0]["slice"] + 1 != len(records):
                    logger.warning(
                        "%s: slices of %s are missing in between, and its largest component ends there",
                        *(self.dataset_name, records[0]["patient"]),
                    )
                kept.update(_keep_largest_component(records))

        distances = {name: self._distance(r, kept) for name, r in patients.items()} if self.spacing else {}
        volumes = {name: Overlap.total(r["overlap"] for r in records) for name, records in patients.items()}
        metrics = measure(slices.values(), volumes.values())
        if self.spacing:
            # NaN, which TEST.BEST may meet, while the network predicts nothing yet
            found = [distance for distance in distances.values() if distance is not None] or [np.nan]
            metrics |= {"hd95_mean": float(np.mean(found)), "hd95_median": float(np.median(found))}
        self._write(metrics, patients, volumes, distances)
        dice = {name: 100 * volume.dice for name, volume in volumes.items()}
        draw_volume_dice(dice, os.path.join(self.output_folder, "volume_dice.png"))
        if self.num_pictures:
            self._draw(dice, slices, [shown for _, shown in parts], kept)
        logger.info(
            "%s, %d slices of %d patients:\n%s",
            *(self.dataset_name, len(slices), len(patients), table(metrics)),
        )
        return {"segmentation": metrics}

    def _distance(self, records, kept):
        masks = _volume(records)
        for record in records if kept else ():
            masks[0, record["slice"] - records[0]["slice"]] = kept[record["image_id"]]
        return hausdorff95(*masks, self.spacing)

    def _write(self, metrics, patients, volumes, distances):
        by_patient = [
            {
                "patient": name,
                "dice": 100 * volumes[name].dice,
                **({"hd95": distances[name]} if self.spacing else {}),
                "num_slices": len(records),
                "num_tumour_slices": sum(record["overlap"].true > 0 for record in records),
                **volumes[name]._asdict(),
            }
            for name, records in patients.items()
        ]
        by_slice = [
            {
                **{key: record[key] for key in ("image_id", "patient", "slice", "dice_loss")},
                "soft_iou": 100 * record["soft_iou"],
                "dice": 100 * record["overlap"].dice,
                **record["overlap"]._asdict(),
            }
            for records in patients.values()
            for record in records
        ]
        content = {
            **metrics,
            **{key: getattr(self, key) for key in ("smooth", "threshold", "largest_component", "spacing")},
            "num_slices": len(by_slice),
            "num_tumour_slices": sum(entry["num_tumour_slices"] for entry in by_patient),
            "patients": by_patient,
            "slices": by_slice,
        }
        write_atomically(os.path.join(self.output_folder, "segmentation.json"), json.dumps(content))
        write_atomically(os.path.join(self.output_folder, "patients.csv"), as_csv(by_patient))

    def _draw(self, dice, slices, parts, kept):
        os.makedirs(self.pictures_folder, exist_ok=True)
        ranked, pictures = sorted(dice, key=dice.get, reverse=True), []
        for index in spread_out(len(ranked), self.num_pictures):
            patient = ranked[index]
            shown = max((part[patient] for part in parts if patient in part), key=lambda s: s["key"])
            record, probabilities = slices[shown["image_id"]], shown["probabilities"]
            prediction = kept.get(shown["image_id"])
            if prediction is None:
                prediction = _unpack(shown["prediction"], probabilities.shape)
            name, own_dice = f"rank_{index + 1:03d}.png", 100 * record["overlap"].dice
            image, truth = read_image(shown["file_name"], "RGB"), read_mask(shown["mask_file_name"])
            draw_slice(image, truth, probabilities, prediction, os.path.join(self.pictures_folder, name))
            note = f"rank {index + 1} of {len(ranked)}; slice {record['slice']}: Dice {own_dice:.1f} %"
            title = f"{patient}: volume Dice {dice[patient]:.1f} %"
            entry = {"file": name, "title": title, "note": note, "panels": PANELS}
            pictures.append({**entry, "error": 1 - dice[patient] / 100})
        index_pictures(self.pictures_folder, pictures)


def spread_out(length, number):
    """Up to `number` positions in a list, spread evenly from first to last; a single one is the middle."""
    if number == 1:
        return [(length - 1) // 2]
    return sorted({round(position) for position in np.linspace(0, length - 1, number).tolist()})


def _foreground(channels, image, key):
    """Probability of anything but background: float32, (H, W)."""
    channels = channels.detach().float().cpu().numpy()
    least, most = channels.min(), channels.max()
    # NaN fails every comparison
    if not (least >= -ROUNDING and most <= 1 + ROUNDING):
        raise ValueError(
            f"{key!r} of {image['file_name']} must be probabilities in [0, 1], got values from {least} to "
            f"{most}. NaN: the training has diverged; lower SOLVER.BASE_LR. Others: apply sigmoid or softmax."
        )
    return (channels[0] if len(channels) == 1 else 1 - channels[0]).clip(0, 1)


def _check_size(prediction, truth, name, other):
    if prediction.shape != truth.shape:
        raise ValueError(
            f"{name} are of size {prediction.shape} (height, width), but {other} is of size {truth.shape}. "
            "They must be equal: the first comes from the model, the second from the mapper or the files."
        )


def _unpack(bits, shape):
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def _volume(records):
    """Predicted and true mask of a patient: bool, (2, D, H, W)."""
    shapes = {record["masks"][1] for record in records}
    if len(shapes) > 1:
        raise ValueError(
            f"The slices of patient {records[0]['patient']} differ in size ({shapes}), so they are no "
            "volume: set TEST.SEGMENTATION.LARGEST_COMPONENT False and SPACING ()"
        )
    first, last = records[0]["slice"], records[-1]["slice"]
    # A missing slice stays empty, so its two sides are not connected.
    masks = np.zeros((2, last - first + 1, *shapes.pop()), bool)  # predicted ones, true ones
    for record in records:
        bits, shape = record["masks"]
        masks[:, record["slice"] - first] = _unpack(bits, (2, *shape))
    return masks


def _keep_largest_component(records):
    """Count a patient's slices anew on the largest part of its prediction: image_id -> mask, bool (H, W)."""
    masks, first = _volume(records), records[0]["slice"]
    masks[0] = largest_component(masks[0])
    kept = {}
    for record in records:
        kept[record["image_id"]], truth = masks[:, record["slice"] - first]
        record["overlap"] = Overlap.of(kept[record["image_id"]], truth)
    return kept
