"""Five predicted slices of two patients, counted by hand, and their evaluation in several processes."""

import json
import os

import numpy as np
import torch
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from PIL import Image

from iso_d2.evaluation import SegmentationEvaluator

NAME = "slices_test"
# Patient and slice; truth and probabilities on the original grid (2 x 3); the same on the input grid (2 x 2)
SLICES = [
    ("A", 1, [1, 1, 0, 0, 0, 0], [0.9, 0.5, 0.8, 0.1, 0.0, 0.0], [1, 0, 0, 0], [0.75, 0.5, 0.0, 0.0]),
    ("A", 2, [1, 1, 1, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2, 0.2], [1, 1, 0, 0], [0.25, 0.25, 0.0, 0.0]),
    ("A", 3, [0, 0, 0, 0, 0, 0], [0.0, 0.1, 0.0, 0.0, 0.4, 0.0], [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.5]),
    ("B", 1, [0, 0, 0, 0, 0, 0], [0.6, 0.0, 0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0], [0.5, 0.0, 0.0, 0.0]),
    ("B", 3, [0, 0, 0, 1, 1, 1], [0.0, 0.0, 0.0, 0.9, 0.9, 0.1], [0, 0, 1, 1], [0.0, 0.0, 1.0, 0.5]),
]
# Pixels in both, predicted (0.5 or more) and true, of each slice: counted by hand
COUNTS = [(2, 3, 2), (0, 0, 3), (0, 0, 0), (0, 1, 0), (2, 2, 3)]
# With the largest part of each patient alone: slice 2 of B is missing, so its two others are not connected.
LARGEST_COUNTS = [*COUNTS[:3], (0, 0, 0), (2, 2, 3)]


def tensor(values, rows, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(rows, -1)


def samples(folder):
    """Dataset dicts as the mapper leaves them, with files, and the model's outputs: a list of pairs."""
    pairs = []
    for patient, number, truth, original, label, probabilities in SLICES:
        stem = os.path.join(folder, f"{patient}_{number}")
        if not os.path.exists(f"{stem}.png"):
            grey = np.full((2, 3, 3), 40 * number, np.uint8)
            Image.fromarray(grey).save(f"{stem}.png")
            Image.fromarray(255 * np.array(truth, np.uint8).reshape(2, 3)).save(f"{stem}_mask.png")
        inputs = {
            "file_name": f"{stem}.png",
            "mask_file_name": f"{stem}_mask.png",
            "image_id": f"{patient}_{number}",
            "patient": patient,
            "slice": number,
            "height": 2,
            "width": 3,
            "sem_seg": tensor(label, 2, torch.int64),
        }
        outputs = {"sem_seg": tensor(original, 2)[None], "probabilities": tensor(probabilities, 2)[None]}
        pairs.append((inputs, outputs))
    return pairs


class Answers(torch.nn.Module):
    """A model that gives back what its inputs carry."""

    def forward(self, inputs):
        return [x["answer"] for x in inputs]


def evaluate_in_one_process(folder):
    """What each process does with its share, as Detectron2's loader divides five slices."""
    torch.set_num_threads(1)
    pairs = samples(folder)
    records = [{**inputs, "answer": outputs} for inputs, outputs in pairs]
    loader = build_detection_test_loader(records, mapper=lambda x: x, num_workers=0)

    pictures = os.path.join(folder, "pictures")
    plain = SegmentationEvaluator(
        NAME, os.path.join(folder, "plain"), pictures_folder=pictures, num_pictures=3
    )
    largest = SegmentationEvaluator(NAME, os.path.join(folder, "largest"), largest_component=True)
    results = {
        "share": len(loader),
        "plain": inference_on_dataset(Answers(), loader, plain),
        "largest": inference_on_dataset(Answers(), loader, largest),
    }
    plain.reset()
    plain.process(*zip(*pairs, strict=True))  # all slices in every process
    results["repeated"] = plain.evaluate()
    with open(os.path.join(folder, f"rank{comm.get_rank()}.json"), "w") as f:
        json.dump(results, f)
