import random
import re

import pytest
from lgg_files import PATIENTS

from iso_d2.data.lgg import patients
from iso_d2.data.lgg.patients import PATIENTS as ALL
from iso_d2.data.lgg.patients import choose_slices, split_name


def test_the_frozen_table():
    """110 patients, 3,929 slices; the table follows from seed 18 as its description says."""
    assert len(ALL) == 110 and sum(p.slices for p in ALL.values()) == 3929
    names = sorted(ALL)
    order = list(names)
    random.Random(18).shuffle(order)
    assert list(ALL) == order
    assert [name for name, p in ALL.items() if p.in_val] == order[:17]
    every = [(name, i) for name in names for i in range(1, ALL[name].slices + 1)]
    chosen = {(name, i) for name, p in ALL.items() for i in p.val_slices}
    assert chosen == set(random.Random(18).sample(every, 589))


def sides(split, table):
    records = [{"patient": name, "slice": 1} for name in table]
    return [
        {records[i]["patient"] for i in choose_slices(side, split, table, records)}
        for side in ("train", "val")
    ]


def test_the_tuning_split_is_within_the_training_patients(monkeypatch):
    hidden = {name for name, p in ALL.items() if p.in_val}
    parts = [*sides("tune", ALL), hidden]
    assert [len(part) for part in parts] == [77, 16, 17] and len(set.union(*parts)) == 110
    monkeypatch.setattr(patients, "TUNING_PATIENTS", 1)
    # B, which is lgg_val of the patient split, is on neither side; A is the next one
    assert sides("tune", PATIENTS) == [{"TCGA_C"}, {"TCGA_A"}]


def test_folds_validate_on_every_patient_once():
    folds = [sides(f"fold{fold}of4", ALL) for fold in range(4)]
    assert sorted(name for _, val in folds for name in val) == sorted(ALL)
    assert all(not train & val and len(train | val) == 110 for train, val in folds)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (("random", 0, 5), "LGG_SPLIT must be one of patient, image, fold, tune, got 'random'"),
        (("fold", 0, 1), "LGG_FOLDS must be from 2 to 110, got 1"),
        (("fold", 0, 111), "LGG_FOLDS must be from 2 to 110, got 111"),
        (("fold", 5, 5), "LGG_FOLD must be from 0 to LGG_FOLDS - 1 = 4, got 5"),
    ],
)
def test_splits_that_do_not_exist(split, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_name(*split)


def test_names_of_splits():
    assert [split_name(name, 3, 22) for name in patients.SPLITS] == [
        "patient",
        "image",
        "fold3of22",
        "tune",
    ]
