import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image

from iso_d2.evaluation import VisualPredictions
from iso_d2.evaluation.visualization import class_colour, count_matches

HEIGHT, WIDTH = 40, 60
NAME = "drawn_test"


@pytest.fixture
def records(tmp_path):
    """Three grey images with a square each, as box and as label map."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[10:30, 10:30] = 1
    Image.fromarray(labels).save(tmp_path / "labels.png")
    records = []
    for i in range(3):
        path = str(tmp_path / f"photo{i}.png")
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)).save(path)
        annotation = {"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        size = {"height": HEIGHT, "width": WIDTH, "image_id": i}
        truth = {"annotations": [annotation], "sem_seg_file_name": str(tmp_path / "labels.png")}
        records.append({"file_name": path, **size, **truth})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        thing_classes=["square"], stuff_classes=["ground", "square"], ignore_label=255, evaluator_type="coco"
    )
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def found(box, score):
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor([box], dtype=torch.float32))
    instances.scores = torch.tensor([score])
    instances.pred_classes = torch.tensor([0])
    return {"instances": instances}


def draw(folder, inputs, outputs, num_images=1, **kwargs):
    evaluator = VisualPredictions(NAME, str(folder), num_images, **kwargs)
    evaluator.reset()
    for image, output in zip(inputs, outputs, strict=True):
        evaluator.process([image], [output])
    assert evaluator.evaluate() is None
    pictures = [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))]
    # Small images are drawn eight times as large, 480 pixels wide.
    assert all(picture.shape[0] == 8 * HEIGHT for picture in pictures)
    return [picture[::8, ::8] for picture in pictures]


def changed(panel):
    """Where a panel differs from the grey image, (H, W) of bool."""
    return (abs(panel - 128) > 20).any(axis=2)


def test_ground_truth_left_and_prediction_right(records, tmp_path):
    (picture,) = draw(tmp_path / "a", records[:1], [found([35, 5, 55, 35], 0.9)])
    assert picture.shape == (HEIGHT, 2 * WIDTH, 3)
    left, right = changed(picture[:, :WIDTH]), changed(picture[:, WIDTH:])
    assert left[20, 10] and not left[20, 35:].any()  # the edge of the true box
    assert right[25, 35] and not right[20:, :30].any()  # of the predicted one


def test_low_scores_are_not_drawn(records, tmp_path):
    (picture,) = draw(tmp_path / "a", records[:1], [found([35, 5, 55, 35], 0.2)])
    assert not changed(picture[:, WIDTH:]).any()
    (picture,) = draw(tmp_path / "b", records[:1], [found([35, 5, 55, 35], 0.2)], score_threshold=0.1)
    assert changed(picture[:, WIDTH:]).any()


def test_as_many_as_asked_for(records, tmp_path):
    outputs = [found([35, 5, 55, 35], 0.9)] * 3
    draw(tmp_path / "a", records, outputs, num_images=2)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["000_photo0.png", "001_photo1.png", "pictures.json"]


def test_without_ground_truth_only_the_prediction(records, tmp_path):
    for record in records:
        del record["annotations"], record["sem_seg_file_name"]
    (picture,) = draw(tmp_path / "a", records[:1], [found([35, 5, 55, 35], 0.9)])
    assert picture.shape == (HEIGHT, WIDTH, 3)


def test_semantic_segmentation(records, tmp_path):
    MetadataCatalog.get(NAME).stuff_colors = [(0, 0, 0), (255, 0, 0)]
    logits = torch.zeros(2, HEIGHT, WIDTH)
    logits[1, :, 40:] = 1  # class 1 in the right third, class 0 (a tie goes to the first) elsewhere
    (picture,) = draw(tmp_path / "a", records[:1], [{"sem_seg": logits}])
    assert picture.shape == (HEIGHT, 2 * WIDTH, 3)
    red = picture[:, :, 0] - picture[:, :, 1] > 40
    # Clear of the class names, which stand in the middle of each region
    assert red[12, 14:26].all() and not red[3, :WIDTH].any()
    assert red[3, WIDTH + 42 : WIDTH + 58].all() and not red[3, WIDTH : WIDTH + 38].any()


def test_only_the_main_process_draws(records, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert draw(tmp_path / "a", records[:1], [found([35, 5, 55, 35], 0.9)]) == []


def test_a_class_has_one_colour_in_truth_and_prediction(records, tmp_path):
    (picture,) = draw(tmp_path / "a", records[:1], [found([35, 5, 55, 35], 0.9)])
    true, predicted = picture[20, 10], picture[25, WIDTH + 35]  # on the left edge of each box
    assert np.abs(true - predicted).max() < 12
    # orange, the first of the palette, mixed with the grey below
    assert true[0] > true[1] + 20 > true[2] + 40


def test_true_masks_only_beside_predicted_ones(records, tmp_path):
    records[0]["annotations"][0]["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    (picture,) = draw(tmp_path / "a", records[:1], [found([35, 5, 55, 35], 0.9)])
    assert not changed(picture)[22:28, 14:26].any()
    output = found([35, 5, 55, 35], 0.9)
    masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[:, 5:35, 35:55] = True
    output["instances"].pred_masks = masks
    (picture,) = draw(tmp_path / "b", records[:1], [output])
    assert changed(picture)[22:28, 14:26].all() and changed(picture)[22:28, WIDTH + 40 : WIDTH + 50].all()


def test_the_index_has_the_error_of_each_picture(records, tmp_path):
    outputs = [found([10, 10, 30, 30], 0.9), found([35, 5, 55, 35], 0.9), found([10, 10, 30, 30], 0.1)]
    draw(tmp_path / "a", records, outputs, num_images=3)
    entries = json.loads((tmp_path / "a" / "pictures.json").read_text())
    assert [entry["error"] for entry in entries] == [0, 1, 1]
    notes = ["1 of 1 found, 0 missed, 0 extra", "0 of 1 found, 1 missed, 1 extra"]
    assert [entry["note"] for entry in entries] == [*notes, "0 of 1 found, 1 missed, 0 extra"]
    # of 40 x 60 pixels the square of 20 x 20 is of another class than predicted
    draw(tmp_path / "b", records[:1], [{"sem_seg": torch.stack([torch.ones(40, 60), torch.zeros(40, 60)])}])
    (entry,) = json.loads((tmp_path / "b" / "pictures.json").read_text())
    assert entry["error"] == pytest.approx(1 / 6) and entry["note"] == "16.7 % of the pixels wrong"


def test_each_object_is_found_once_and_by_its_own_class():
    # Two objects of class 0 beside each other and one of class 1; 5 of 10 x 10 pixels apart the IoU is 1/3
    boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]]))
    predictions = Instances((HEIGHT, WIDTH))
    predictions.pred_boxes = Boxes(
        torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [25, 0, 35, 10], [0, 0, 10, 10]])
    )
    predictions.pred_classes = torch.tensor([0, 0, 0, 1])
    predictions.scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert count_matches(boxes, [0, 0, 1], predictions) == 2
    assert count_matches(boxes, [0, 0, 1], predictions, iou=0.3) == 3
    assert count_matches(boxes[:0], [], predictions) == 0
    assert count_matches(boxes, [0, 0, 1], predictions[:0]) == 0


def test_colours_of_the_metadata_come_first():
    assert class_colour(1, [(0, 0, 0), (255, 0, 51)]) == (1, 0, 0.2)
    assert len({class_colour(number) for number in range(50)}) == 50
