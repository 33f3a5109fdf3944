import numpy as np
import pytest
from toy_records import toy_record, toy_records

from experiments.experiment import TABLES
from experiments.samples import draw_coco, score_to_draw

COCO = next(table for table in TABLES if table.name == "coco-scratch")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([[0.9, 0.8], [0.6]], 0.5), ([[0.9, 0.2], [0.2, 0.35]], 0.3), ([[], [0.01]], 0.05)],
)
def test_the_score_from_which_detections_are_drawn(scores, expected):
    assert score_to_draw([np.array(one) for one in scores]) == expected


def test_pictures_need_checkpoints_of_trainings_that_did_not_diverge(tmp_path):
    names = ("coco-scratch-risonet-fpn", "coco-scratch-resnet-fpn-bn")
    records = toy_records(
        *(toy_record(name, diverged=number) for name, number in zip(names, (3, None), strict=True))
    )
    with pytest.raises(
        FileNotFoundError, match=r"cpu/coco-scratch-resnet-fpn-bn/seed1/model_final.pth is not"
    ):
        draw_coco(tmp_path, COCO, "cpu", records)
    with pytest.raises(FileNotFoundError, match="all of these trainings diverged"):
        draw_coco(tmp_path, COCO, "cpu", toy_records(*(toy_record(name, diverged=3) for name in names)))
