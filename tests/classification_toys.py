"""Samples of a data set of 3 classes, scored by hand, and their evaluation in several processes."""

import json
import os

import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from scored_slices import Answers

from iso_d2.evaluation import ClassificationEvaluator

NAME = "scored_test"
CLASSES = ["cat", "dog", "owl"]
# (label, scores): cat right, cat taken for an owl, dog right three times, dog taken for a cat, owl right
SAMPLES = [
    (0, [0.5, 0.25, 0.25]),
    (0, [0.25, 0.25, 0.5]),
    (1, [0.25, 0.5, 0.25]),
    (1, [0.0, 1.0, 0.0]),
    (1, [0.125, 0.75, 0.125]),
    (1, [0.5, 0.125, 0.375]),
    (2, [0.125, 0.25, 0.625]),
]


def register():
    MetadataCatalog.get(NAME).set(thing_classes=CLASSES, evaluator_type="classification")


def evaluate_in_one_process(folder):
    """What each process does with its share, as Detectron2's loader divides 7 samples."""
    torch.set_num_threads(1)
    register()
    records = [{"label": label, "answer": {"scores": torch.tensor(scores)}} for label, scores in SAMPLES]
    loader = build_detection_test_loader(records, mapper=lambda x: x, num_workers=0)
    evaluator = ClassificationEvaluator(NAME, os.path.join(folder, "results"))
    results = inference_on_dataset(Answers(), loader, evaluator)
    with open(os.path.join(folder, f"rank{comm.get_rank()}.json"), "w") as f:
        json.dump({"results": results, "share": len(loader)}, f)
