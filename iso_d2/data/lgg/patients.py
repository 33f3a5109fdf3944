"""The 110 patients of the LGG data set, how many slices each has, and the frozen splits.

``patients.tsv`` holds the patients in a random order and says who is in lgg_val. It was made once, with seed
18, by ``random.Random(seed).shuffle`` of the sorted names and ``random.Random(seed).sample`` of the sorted
slices, and must not change. What each split validates on:

    patient    the first 17 patients (15 %). Seed 18 is the first that gives them 14 to 16 % of all slices and
               of those with tumour, and 2 of the 12 patients of the comparison in results/.
    image      589 of the 3,929 slices (15 %), whatever their patients: slices of one patient are on both
               sides, as in the report, so that its figures say little of new patients.
    tune       the 16 patients after the 17 of the patient split, which are on neither side: for choosing
               hyperparameters without a look at the patients by whom networks are compared.
    fold1of5   and other folds: patient i in that order (from 0) is in fold i modulo the number of folds.

A patient is on the same side whether all patients are there or only some.
"""

import csv
import dataclasses
import re
from pathlib import Path

SPLITS = ("patient", "image", "fold", "tune")
TUNING_PATIENTS = 16


@dataclasses.dataclass(frozen=True)
class Patient:
    """A patient of the data set."""

    index: int  # place in the frozen order, from 0
    slices: int  # how many there are, numbered from 1
    in_val: bool  # whether in lgg_val of the patient split
    val_slices: frozenset  # of int: those in lgg_val of the image split


def read_patients():
    """dict[str, Patient]: the table, by name, in the frozen order."""
    with open(Path(__file__).with_name("patients.tsv"), newline="") as file:
        return {
            row["patient"]: Patient(
                index=index,
                slices=int(row["slices"]),
                in_val=row["patient_split"] == "val",
                val_slices=frozenset(map(int, filter(None, row["val_slices_of_image_split"].split(",")))),
            )
            for index, row in enumerate(csv.DictReader(file, delimiter="\t"))
        }


PATIENTS = read_patients()


def split_name(split, fold, folds):
    """str: how the names of data sets call one of SPLITS: "patient", "image", "tune", or such as "fold0of5".

    With "fold", part ``fold`` of ``folds``, from 0, is lgg_val. Another split or fold raises ValueError.
    """
    if split not in SPLITS:
        raise ValueError(f"DATASETS.LGG_SPLIT must be one of {', '.join(SPLITS)}, got {split!r}")
    if split != "fold":
        return split
    if not 2 <= folds <= len(PATIENTS):
        raise ValueError(f"DATASETS.LGG_FOLDS must be from 2 to {len(PATIENTS)}, got {folds}")
    if not 0 <= fold < folds:
        raise ValueError(f"DATASETS.LGG_FOLD must be from 0 to LGG_FOLDS - 1 = {folds - 1}, got {fold}")
    return f"fold{fold}of{folds}"


def choose_slices(side, split, patients, records):
    """list[int]: which slices belong to one side of a split; ValueError if there are none.

    Args:
        side (str): "train" or "val".
        split (str): as ``split_name`` gives it.
        patients (dict[str, Patient]): the table.
        records (list[dict]): of the slices, with ``patient`` and ``slice``.
    """
    tuning = [name for name, patient in patients.items() if not patient.in_val][:TUNING_PATIENTS]

    def in_val(record):
        patient = patients[record["patient"]]
        if split == "patient":
            return patient.in_val
        if split == "image":
            return record["slice"] in patient.val_slices
        if split == "tune":
            return None if patient.in_val else record["patient"] in tuning
        fold, folds = map(int, re.findall(r"\d+", split))
        return patient.index % folds == fold

    chosen = [index for index, record in enumerate(records) if in_val(record) is (side == "val")]
    if not chosen:
        present = len({record["patient"] for record in records})
        raise ValueError(
            f"the {side} side of the LGG split {split} has no slices: none of the {present} patients here "
            f"belongs to it. Add more of the {len(patients)} patients, or take another split."
        )
    return chosen
