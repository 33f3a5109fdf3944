"""Real LGG slices, where DETECTRON2_DATASETS has them, against facts about them."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from iso_d2.data import lgg


@pytest.fixture
def dicts(real_data):
    """Dataset dicts of lgg_train and lgg_val; preprocessed once into the cache of the tests."""
    real_data("lgg-mri-segmentation", "kaggle_3m")
    return {side: DatasetCatalog.get(f"lgg_{side}") for side in ("train", "val")}


@pytest.fixture
def counted(real_data):
    """Slices, and slices with tumour, of each patient, as counted from the original data set."""
    lines = real_data("lgg-mri-segmentation", "patients.tsv").read_text().splitlines()[1:]
    return {name: (int(number), int(positive)) for name, number, positive in map(str.split, lines)}


def test_the_table_is_of_the_original_data_set(counted):
    assert {name: patient.slices for name, patient in lgg.PATIENTS.items()} == {
        name: number for name, (number, _) in counted.items()
    }
    val = [counted[name] for name, patient in lgg.PATIENTS.items() if patient.in_val]
    slices, positive = map(sum, zip(*val, strict=True))
    assert 0.14 < slices / 3929 < 0.16 and 0.14 < positive / 1373 < 0.16


def test_every_slice_and_tumour_is_found(dicts, counted):
    found = {}
    for record in dicts["train"] + dicts["val"]:
        number, positive = found.get(record["patient"], (0, 0))
        found[record["patient"]] = (number + 1, positive + bool(record["sem_seg_array"].any()))
    assert found == {name: counted[name] for name in found}
    patients = [{record["patient"] for record in part} for part in dicts.values()]
    assert not patients[0] & patients[1]
    if len(found) == 12:
        assert [len(names) for names in patients] == [10, 2]
        assert sum(number for number, _ in found.values()) == 400


def original_mask(record):
    return np.asarray(Image.open(record["mask_file_name"])) > 0


def test_the_crop_loses_no_tumour(dicts):
    for record in dicts["train"] + dicts["val"]:
        mask, p = original_mask(record), record["placement"]
        inside = mask[p.top : p.top + p.height, p.left : p.left + p.width]
        assert inside.sum() == mask.sum(), record["image_id"]


def test_the_crop_is_tight_where_there_is_a_head(dicts):
    """Slices with tumour have a head, on black ground; only nearly black ones stay whole."""
    records = dicts["train"] + dicts["val"]
    areas = [record["placement"].height * record["placement"].width / 256**2 for record in records]
    with_head = [area for area, r in zip(areas, records, strict=True) if r["sem_seg_array"].any()]
    assert min(with_head) > 0.15 and max(with_head) < 1.0 and np.mean(with_head) < 0.75
    for area, record in zip(areas, records, strict=True):
        assert area < 1.0 or (record["image_array"] < 40).mean() > 0.98, record["image_id"]


def test_masks_come_back_through_their_placement(dicts):
    """Each original pixel takes the preprocessed one at its centre; Dice of whole volumes and of slices."""
    volumes = {}
    for record in dicts["train"] + dicts["val"]:
        p, truth = record["placement"], original_mask(record)
        label = torch.from_numpy(record["sem_seg_array"].copy())[None].float()
        back = p.put_back(label, *truth.shape)[0].numpy() > 0.5
        both, total = int((back & truth).sum()), int(back.sum() + truth.sum())
        if truth.sum() >= 100:
            assert 2 * both / total > 0.95, record["image_id"]
        sums = volumes.setdefault(record["patient"], [0, 0])
        sums[0] += 2 * both
        sums[1] += total
    assert min(both / total for both, total in volumes.values()) > 0.97
