import json
import math
import sys

import numpy as np
import pytest
import scored_slices
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from PIL import Image
from scored_slices import COUNTS, LARGEST_COUNTS, NAME, SLICES

from iso_d2.evaluation.segmentation import SegmentationEvaluator, spread_out
from iso_d2.evaluation.segmentation_metrics import hausdorff95

TUMOUR = [0, 1, 4]  # which of SLICES have one


def expected(counts, smooth=1.0):
    """The measures of scored_slices, from its counts and the formulas, in plain Python."""
    dice = [2 * i / (p + t) if p + t else 1 for i, p, t in counts]
    iou = [i / (p + t - i) if p + t else 1 for i, p, t in counts]
    losses, soft = [], []
    for *_, label, probabilities in SLICES:
        product = sum(p * q for p, q in zip(probabilities, label, strict=True))
        squares = sum(p * p for p in probabilities) + sum(label)
        losses.append(1 - (2 * product + smooth) / (squares + smooth))
        soft.append((product + smooth) / (sum(probabilities) + sum(label) - product + smooth))
    a, b = ([sum(column) for column in zip(*part, strict=True)] for part in (counts[:3], counts[3:]))
    low, high = sorted(200 * i / (p + t) for i, p, t in (a, b))
    metrics = {
        "volume_dice_mean": (low + high) / 2,
        "volume_dice_median": (low + high) / 2,
        "volume_dice_q1": low + (high - low) / 4,
        "volume_dice_q3": high - (high - low) / 4,
        "volume_dice_min": low,
        "detection_rate": 100 * 2 / 3,
        "false_alarm_rate": 100 * sum(counts[k][1] > 0 for k in (2, 3)) / 2,
    }
    for name, values, unit in (
        ("dice_loss", losses, 1),
        ("mean_iou", soft, 100),
        ("slice_dice", dice, 100),
        ("slice_iou", iou, 100),
    ):
        metrics[name] = unit * sum(values) / 5
        metrics[f"{name}_tumour"] = unit * sum(values[k] for k in TUMOUR) / 3
    return pytest.approx(metrics)


def evaluate(pairs, folder, **options):
    evaluator = SegmentationEvaluator(NAME, str(folder), **options)
    evaluator.reset()
    for inputs, outputs in pairs:
        evaluator.process([inputs], [outputs])
    return evaluator.evaluate()


@pytest.fixture
def pairs(tmp_path):
    return scored_slices.samples(tmp_path)


def test_figures_by_hand(pairs, tmp_path):
    metrics = evaluate(pairs, tmp_path / "a" / "b")["segmentation"]
    assert metrics == expected(COUNTS)
    assert metrics["volume_dice_min"] == pytest.approx(50)  # A: 2 * 2 / (3 + 5)
    assert metrics["false_alarm_rate"] == 50
    assert all(type(value) is float for value in metrics.values())


def test_files(pairs, tmp_path):
    metrics = evaluate(reversed(pairs), tmp_path / "a")["segmentation"]
    content = json.loads((tmp_path / "a" / "segmentation.json").read_text())
    assert {key: content[key] for key in metrics} == metrics
    assert (content["smooth"], content["threshold"], content["largest_component"]) == (1.0, 0.5, False)
    assert (content["num_slices"], content["num_tumour_slices"]) == (5, 3)
    # A: 2 pixels in both, 3 predicted, 5 true; B: 2, 3 and 3
    assert (tmp_path / "a" / "patients.csv").read_text().splitlines() == [
        "patient,dice,num_slices,num_tumour_slices,intersection,predicted,true",
        "A,50.0,3,2,2,3,5",
        f"B,{100 * (4 / 6)},2,1,2,3,3",
    ]
    assert content["patients"] == [
        {
            "patient": "A",
            "dice": pytest.approx(50),
            "num_slices": 3,
            "num_tumour_slices": 2,
            "intersection": 2,
            "predicted": 3,
            "true": 5,
        },
        {
            "patient": "B",
            "dice": pytest.approx(200 / 3),
            "num_slices": 2,
            "num_tumour_slices": 1,
            "intersection": 2,
            "predicted": 3,
            "true": 3,
        },
    ]
    assert [entry["image_id"] for entry in content["slices"]] == ["A_1", "A_2", "A_3", "B_1", "B_3"]
    assert [(e["intersection"], e["predicted"], e["true"]) for e in content["slices"]] == COUNTS
    # sum PQ 0.75, sum P^2 0.8125, sum P 1.25, sum Q 1, and eps 1
    assert content["slices"][0]["dice_loss"] == pytest.approx(1 - 2.5 / 2.8125)
    assert content["slices"][0]["soft_iou"] == pytest.approx(100 * 1.75 / 2.5)
    with Image.open(tmp_path / "a" / "volume_dice.png") as picture:
        assert picture.size == (800, 500)


def test_options(pairs, tmp_path):
    assert evaluate(pairs, tmp_path, smooth=0.25)["segmentation"] == expected(COUNTS, smooth=0.25)
    # At 0.2 slice 2 of A is full, 3 right of 6, and slice 3 has a false pixel
    counts = [(2, 3, 2), (3, 6, 3), (0, 1, 0), (0, 1, 0), (2, 2, 3)]
    metrics = evaluate(pairs, tmp_path, threshold=0.2)["segmentation"]
    assert metrics.pop("detection_rate") == 100
    full = expected(counts).expected
    del full["detection_rate"]
    assert metrics == pytest.approx(full)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": 0}, "THRESHOLD must be a probability above 0, got 0"),
        ({"smooth": -1}, "SMOOTH must be 0 or more, got -1"),
    ],
)
def test_options_out_of_range(options, message, tmp_path):
    with pytest.raises(ValueError, match=rf"TEST\.SEGMENTATION\.{message}"):
        SegmentationEvaluator(NAME, str(tmp_path), **options)


def test_largest_component(pairs, tmp_path):
    metrics = evaluate(pairs, tmp_path, largest_component=True)["segmentation"]
    assert metrics == expected(LARGEST_COUNTS)
    assert metrics["volume_dice_mean"] == pytest.approx((50 + 80) / 2)
    assert metrics["false_alarm_rate"] == 0


def test_slices_of_other_sizes_are_no_volume(pairs, tmp_path):
    inputs, outputs = pairs[1]
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(inputs["mask_file_name"])
    pairs[1] = inputs, {**outputs, "sem_seg": torch.zeros(1, 4, 4)}
    assert evaluate(pairs, tmp_path)
    with pytest.raises(ValueError, match=r"slices of patient A differ in size .*LARGEST_COMPONENT False"):
        evaluate(pairs, tmp_path, largest_component=True)


def test_softmax_counts_all_but_background(pairs, tmp_path):
    changed = []
    for inputs, outputs in pairs:
        # Half of the foreground to either of two classes
        outputs = {key: torch.cat([1 - value, value / 2, value / 2]) for key, value in outputs.items()}
        changed.append((inputs, outputs))
    # 1 - 0.9 and the like are not exact in float32, and 0.5, the threshold, is
    assert evaluate(changed, tmp_path)["segmentation"] == expected(COUNTS)


def test_repeated_slices_count_once_and_reset_forgets(pairs, tmp_path):
    assert evaluate(pairs + pairs[1:4], tmp_path)["segmentation"] == expected(COUNTS)
    evaluator = SegmentationEvaluator(NAME, str(tmp_path))
    evaluator.reset()
    evaluator.process(*zip(*pairs[:4], strict=True))
    evaluator.reset()
    evaluator.process(*zip(*pairs[3:], strict=True))
    assert evaluator.evaluate()["segmentation"]["volume_dice_mean"] == pytest.approx(200 / 3)


def test_patient_without_tumour_and_prediction_agrees_fully(pairs, tmp_path):
    metrics = evaluate(pairs[2:3], tmp_path)["segmentation"]
    assert metrics["volume_dice_mean"] == metrics["slice_dice"] == 100
    assert evaluate(pairs[3:4], tmp_path)["segmentation"]["volume_dice_mean"] == 0


def test_no_slices(tmp_path):
    assert evaluate([], tmp_path / "a") == {}
    assert not (tmp_path / "a").exists()


def test_only_the_main_process_returns_and_writes(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluate(pairs, tmp_path / "a") == {}
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("key", ["probabilities", "sem_seg"])
@pytest.mark.parametrize("value, says", [(float("nan"), "nan.*training has diverged"), (3.5, "3.5")])
def test_no_probabilities(key, value, says, pairs, tmp_path):
    inputs, outputs = pairs[0]
    outputs[key][0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"(?s)'{key}' of .*A_1.png must be .* in \[0, 1\], got .*{says}"):
        evaluate([(inputs, outputs)], tmp_path)


@pytest.mark.parametrize("key, name", [("probabilities", "its label"), ("sem_seg", "A_1_mask.png")])
def test_other_sizes(key, name, pairs, tmp_path):
    inputs, outputs = pairs[0]
    outputs[key] = torch.zeros(1, 5, 2)
    with pytest.raises(ValueError, match=rf"A_1.png are of size \(5, 2\) .* but .*{name} is of size \(2, "):
        evaluate([(inputs, outputs)], tmp_path)


def test_table_is_logged(pairs, tmp_path, log):
    evaluate(pairs, tmp_path)
    text = log.messages[-1]
    assert text.startswith(f"{NAME}, 5 slices of 2 patients:") and "volume Dice of patients" in text


@pytest.mark.parametrize(
    "length, number, positions",
    [(9, 3, [0, 4, 8]), (9, 1, [4]), (2, 8, [0, 1]), (1, 3, [0]), (10, 4, [0, 3, 6, 9])],
)
def test_which_patients_are_drawn(length, number, positions):
    assert spread_out(length, number) == positions


def test_two_processes_count_every_slice_once(tmp_path, forked):
    scored_slices.samples(tmp_path)
    launch(
        scored_slices.evaluate_in_one_process,
        num_gpus_per_machine=2,
        dist_url="auto",
        args=(str(tmp_path),),
    )
    main, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert {main["share"], other["share"]} == {2, 3}
    assert main["plain"]["segmentation"] == main["repeated"]["segmentation"] == expected(COUNTS)
    assert main["largest"]["segmentation"] == expected(LARGEST_COUNTS)
    assert other["plain"] == other["largest"] == other["repeated"] == {}
    content = json.loads((tmp_path / "plain" / "segmentation.json").read_text())
    assert (content["num_slices"], len(content["slices"])) == (5, 5)
    # Slice 2 of A, which has the most tumour, and slice 3 of B were in different processes' shares.
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["pictures.json", "rank_001.png", "rank_002.png"]


def test_surface_distances(pairs, tmp_path):
    pytest.importorskip("surface_distance")
    metrics = evaluate(pairs, tmp_path, spacing=(5.0, 1.0, 2.0))["segmentation"]
    content = json.loads((tmp_path / "segmentation.json").read_text())
    found = {patient["patient"]: patient["hd95"] for patient in content["patients"]}
    # B: slices 1 to 3 of 2 x 3 pixels, of which the second is missing
    masks = np.zeros((2, 3, 2, 3), bool)
    masks[0, 0, 0, 0] = masks[0, 2, 1, :2] = masks[1, 2, 1] = True
    assert found["B"] == hausdorff95(*masks, (5.0, 1.0, 2.0))
    evaluate(pairs, tmp_path / "largest", spacing=(5.0, 1.0, 2.0), largest_component=True)
    masks[0, 0] = False
    kept = json.loads((tmp_path / "largest" / "segmentation.json").read_text())["patients"][1]["hd95"]
    assert kept == hausdorff95(*masks, (5.0, 1.0, 2.0)) != found["B"]
    assert metrics["hd95_mean"] == pytest.approx((found["A"] + found["B"]) / 2)
    nothing = evaluate(pairs, tmp_path / "nothing", spacing=(5.0, 1.0, 2.0), threshold=1.0)["segmentation"]
    assert math.isnan(nothing["hd95_mean"]) and math.isnan(nothing["hd95_median"])
    assert "A,50.0," + str(found["A"]) in (tmp_path / "patients.csv").read_text()
    with pytest.raises(ValueError, match=r"SPACING must be .. or three distances above 0"):
        SegmentationEvaluator(NAME, str(tmp_path), spacing=(1.0, 0.0, 1.0))


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "surface_distance", None)
    with pytest.raises(ImportError, match=r"SPACING .* pip install iso_d2\[medical\]"):
        SegmentationEvaluator(NAME, str(tmp_path), spacing=(1.0, 1.0, 1.0))
