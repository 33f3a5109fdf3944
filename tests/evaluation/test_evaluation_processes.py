"""Every evaluator finds with two processes what it finds with one, whatever the number of images."""

import json

import engine_toys
import numpy as np
import pytest
import scored_slices
import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.engine import launch
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image
from scored_slices import Answers

from iso_d2.data.batches import EvaluationBatches
from iso_d2.engine.setup import load_config
from iso_d2.evaluation import build_evaluator

COUNT = 5


def found(record):
    """A box near the true one, the nearer the larger the score; in the last image none."""
    number = record["image_id"]
    instances = Instances((record["height"], record["width"]))
    boxes = torch.tensor([engine_toys.BOX] * (number < COUNT - 1), dtype=torch.float32).view(-1, 4)
    instances.pred_boxes = Boxes(boxes + number)
    instances.scores = torch.full((len(boxes),), 0.9 - number / 10)
    instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return {"instances": instances}


def labelled(record):
    """The true labels, shifted by some pixels."""
    labels = np.array(Image.open(record["sem_seg_file_name"]), np.int64)
    labels = torch.from_numpy(np.roll(labels, len(record["file_name"]) % 7 + 3, axis=1))
    return {"sem_seg": torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()}


class Scores(torch.nn.Module):
    """Of a batch in memory: the pixels of one row."""

    def forward(self, batch):
        return {"scores": batch["images"][:, 0, 0].float().softmax(dim=1)}


def evaluate(folder, count):
    torch.set_num_threads(1)
    cfg = load_config("", ["OUTPUT_DIR", str(folder / "output"), "TEST.VISUALIZE", 0])
    results = {}
    records = {
        "toy_test": [{**r, "answer": found(r)} for r in DatasetCatalog.get("toy_test")],
        "shapes_sem_seg_test": [
            {**r, "answer": labelled(r)} for r in DatasetCatalog.get("shapes_sem_seg_test")[:COUNT]
        ],
        "phantom_test": [{**inputs, "answer": answer} for inputs, answer in scored_slices.samples(folder)],
    }
    for name, dicts in records.items():
        loader = build_detection_test_loader(dicts[:count], mapper=lambda x: x, num_workers=0)
        results[name] = inference_on_dataset(Answers(), loader, build_evaluator(cfg, name))
    images = torch.arange(COUNT * 3 * 100).remainder(11).view(COUNT, 3, 10, 10).to(torch.uint8)[:count]
    labels = images[:, 0, 0].argmax(dim=1) // torch.tensor([1, 1, 2, 1, 3])[:count]  # three of five are right
    batches = EvaluationBatches(images, labels, 2, comm.get_rank(), comm.get_world_size())
    results["batches"] = inference_on_dataset(Scores(), batches, build_evaluator(cfg, "shapes_cls_test"))
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps(results))


@pytest.mark.parametrize("count", [COUNT, 1])
def test_two_processes_find_what_one_finds(count, tmp_path, forked):
    engine_toys.register_toy_data(tmp_path, "toy_test", COUNT)
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    try:
        launch(evaluate, 2, dist_url="auto", args=(folders[1], count))
        evaluate(folders[0], count)
    finally:
        engine_toys.unregister("toy_test")
    one, two, other = (
        json.loads((folder / f"rank{rank}.json").read_text())
        for folder, rank in zip((*folders, folders[1]), (0, 0, 1), strict=True)
    )
    assert not any(other.values())
    for name, wanted in one.items():
        for task, metrics in wanted.items():
            assert two[name][task] == pytest.approx(metrics, nan_ok=True), name
    assert one["batches"]["classification"]["top1"] == pytest.approx({1: 100, 5: 60}[count])
