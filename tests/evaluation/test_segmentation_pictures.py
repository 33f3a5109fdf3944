import json

import numpy as np
import pytest
import scored_slices
from PIL import Image
from scored_slices import NAME

from iso_d2.evaluation import segmentation
from iso_d2.evaluation.segmentation import SegmentationEvaluator
from iso_d2.evaluation.segmentation_pictures import draw_overlay, draw_slice, draw_volume_dice

GREY = np.full((20, 30, 3), 128, np.uint8)


def block(rows, columns):
    mask = np.zeros((20, 30), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def is_colour(picture, colour):
    return (picture == colour).all(axis=-1)


def test_overlay_outlines_both_masks():
    overlay = draw_overlay(GREY, block((2, 8), (3, 10)), block((12, 18), (15, 25)))
    assert overlay.shape == (80, 120, 3)
    blue, orange = is_colour(overlay, (86, 180, 233)), is_colour(overlay, (255, 140, 0))
    # On the border of each block, four times as large, and nowhere near its middle
    assert blue[8, 12:40].all() and blue[31, 12:40].all() and blue[8:32, 12].all()
    assert orange[48, 60:100].all() and orange[71, 60:100].all() and orange[48:72, 99].all()
    assert not blue[12:28, 16:36].any() and not orange[50:70, 62:98].any()
    assert blue.sum() + orange.sum() + is_colour(overlay, 128).sum() == 80 * 120
    assert (GREY == 128).all()


def test_both_outlines_show_where_the_masks_agree():
    mask = block((2, 8), (3, 10))
    overlay = draw_overlay(GREY, mask, mask)
    assert is_colour(overlay, (255, 140, 0))[8, 12:40].all()
    assert is_colour(overlay, (86, 180, 233))[6, 12:40].all()


def test_holes_are_outlined():
    ring = block((2, 18), (2, 18)) & ~block((8, 12), (8, 12))
    orange = is_colour(draw_overlay(GREY, None, ring), (255, 140, 0))
    assert orange[28:52, 28:52].any()


def test_without_masks_only_the_image():
    assert (draw_overlay(GREY, block((0, 0), (0, 0)), block((0, 0), (0, 0))) == 128).all()
    assert (draw_overlay(GREY, None, block((0, 0), (0, 0))) == 128).all()


def test_slice_has_four_panels(tmp_path):
    path = tmp_path / "a.png"
    probabilities = np.full((20, 30), 255, np.uint8)
    draw_slice(GREY, block((5, 15), (10, 20)), probabilities, block((5, 15), (10, 20)), path)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    panels = np.array_split(picture, 4, axis=1)
    middle = [panel[len(panel) // 2, panel.shape[1] // 2] for panel in panels]
    assert [colour.tolist() for colour in middle] == [[128] * 3, [255] * 3, [255] * 3, [128] * 3]
    # The truth panel is black around its block, the others have nothing black of that size
    black = [(panel < 20).all(axis=2).mean() for panel in panels]
    assert black[1] > 0.4 and max(black[0], black[2], black[3]) < 0.1
    coloured = [(panel.max(axis=2) - panel.min(axis=2) > 100).any() for panel in panels]
    assert coloured == [False, False, False, True]


@pytest.mark.parametrize("number", [1, 12, 110])
def test_volume_dice_of_any_number_of_patients(number, tmp_path):
    path = tmp_path / "a.png"
    draw_volume_dice({f"patient{i}": 100 * i / number for i in range(number)}, path)
    with Image.open(path) as picture:
        assert picture.size == (800, 500)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Function that evaluates the five slices and gives what would be drawn: path's name -> arguments."""

    def draw(**options):
        calls = {}

        def record(image, truth, probabilities, prediction, path):
            calls[path.rsplit("/", 1)[1]] = (image, truth, probabilities, prediction)

        monkeypatch.setattr(segmentation, "draw_slice", record)
        evaluator = SegmentationEvaluator(
            NAME, str(tmp_path / "results"), pictures_folder=str(tmp_path / "pictures"), **options
        )
        evaluator.reset()
        evaluator.process(*zip(*scored_slices.samples(tmp_path), strict=True))
        evaluator.evaluate()
        return calls

    return draw


def test_slice_with_the_most_tumour_of_each_patient(drawn, tmp_path):
    calls = drawn(num_pictures=5)
    assert sorted(calls) == ["rank_001.png", "rank_002.png"]
    # B is best, with 2 * 2 / 6. Of its slices number 3 has tumour; of A's number 2 has the most.
    image, truth, probabilities, prediction = calls["rank_001.png"]
    assert image.shape == (2, 3, 3) and (image == 120).all()
    assert truth.tolist() == [[False] * 3, [True] * 3]
    assert probabilities.tolist() == [[0, 0, 0], [230, 230, 26]]  # 229.5 to the even number, 25.5 too
    assert prediction.tolist() == [[False] * 3, [True, True, False]]
    best, worst = json.loads((tmp_path / "pictures" / "pictures.json").read_text())
    assert (best["title"], best["note"]) == ("B: volume Dice 66.7 %", "rank 1 of 2; slice 3: Dice 80.0 %")
    assert (worst["title"], worst["note"]) == ("A: volume Dice 50.0 %", "rank 2 of 2; slice 2: Dice 0.0 %")
    assert best["error"] == pytest.approx(1 / 3) and worst["error"] == 0.5 and len(best["panels"]) == 4


def test_pictures_show_the_largest_component(drawn, monkeypatch):
    # Two pixels that touch stay, a third does not.
    slices = [list(entry) for entry in scored_slices.SLICES[:1]]
    slices[0][2] = [1, 0, 1, 0, 0, 0]
    slices[0][3] = [0.9, 0.0, 0.9, 0.0, 0.0, 0.9]
    monkeypatch.setattr(scored_slices, "SLICES", slices)
    *_, prediction = drawn(num_pictures=1, largest_component=True)["rank_001.png"]
    assert prediction.tolist() == [[False, False, True], [False, False, True]]


def test_no_pictures_unless_asked_for(drawn, tmp_path):
    assert drawn() == {}
    assert not (tmp_path / "pictures").exists()
