"""The 110 patients of the LGG data set, how many slices each has, and the frozen splits.

``lgg_patients.tsv`` holds the patients in a random order and says what is in lgg_val. It was made once, with
seed 18, by ``random.Random(seed).shuffle`` of the sorted names and ``random.Random(seed).sample`` of the
sorted slices, and is not to change:

    patient    the first 17 patients are lgg_val (15 %). Seed 18 is the first that gives them 14 to 16 % of
               all slices and of those with tumour, and 2 of the 12 patients of the comparison in results/.
    image      589 of the 3,929 slices are lgg_val (15 %), whatever their patients: slices of one patient are
               on both sides, as in the report, so that its figures say little of new patients.
    fold       patient i in that order (from 0) is lgg_val of fold i modulo the number of folds.
    tune       the 17 patients of lgg_val of the patient split are left out, the 16 after them are lgg_val:
               for choosing hyperparameters without a look at the patients by whom networks are compared.

A patient is on the same side whether all patients are there or only some.
"""

import csv
import dataclasses
from pathlib import Path

SPLITS = ("patient", "image", "fold", "tune")
TUNING_PATIENTS = 16


@dataclasses.dataclass(frozen=True)
class Patient:
    """A patient of the data set.

    Args:
        index (int): place in the frozen order, from 0.
        slices (int): how many there are, numbered from 1.
        in_val (bool): whether in lgg_val of the patient split.
        val_slices (frozenset[int]): those in lgg_val of the image split.
    """

    index: int
    slices: int
    in_val: bool
    val_slices: frozenset


def read_patients():
    """Read the table.

    Returns:
        dict[str, Patient]: by name, in the frozen order.
    """
    with open(Path(__file__).with_name("lgg_patients.tsv"), newline="") as file:
        return {
            row["patient"]: Patient(
                index=index,
                slices=int(row["slices"]),
                in_val=row["patient_split"] == "val",
                val_slices=frozenset(map(int, filter(None, row["val_slices_of_image_split"].split(",")))),
            )
            for index, row in enumerate(csv.DictReader(file, delimiter="\t"))
        }


def choose_slices(side, split, fold, folds, patients, records):
    """Which slices belong to lgg_train or lgg_val.

    Args:
        side (str): "train" or "val".
        split, fold, folds: as ``check_split`` takes them.
        patients (dict[str, Patient]): the table.
        records (list[dict]): of the slices, with ``patient`` and ``slice``.

    Returns:
        list[int]: indices into ``records``.

    Raises:
        ValueError: there are none.
    """

    tuning = set([name for name, patient in patients.items() if not patient.in_val][:TUNING_PATIENTS])

    def side_of(record):
        patient = patients[record["patient"]]
        if split == "tune" and patient.in_val:
            return None
        in_val = {
            "patient": patient.in_val,
            "image": record["slice"] in patient.val_slices,
            "fold": patient.index % folds == fold,
            "tune": record["patient"] in tuning,
        }[split]
        return "val" if in_val else "train"

    chosen = [index for index, record in enumerate(records) if side_of(record) == side]
    if not chosen:
        present = len({record["patient"] for record in records})
        which = f" (LGG_FOLD {fold} of {folds})" if split == "fold" else ""
        raise ValueError(
            f"lgg_{side} has no slices: with DATASETS.LGG_SPLIT {split}{which}, none of those of the "
            f"{present} patients present belongs to it. Add more of the {len(patients)} patients, or split "
            "otherwise."
        )
    return chosen


def check_split(split, fold, folds, patients):
    """Refuse what is no split.

    Args:
        split (str): one of SPLITS.
        fold (int): which part is lgg_val, from 0; only "fold" looks at it.
        folds (int): how many parts there are; only "fold" looks at it.
        patients (dict[str, Patient]): the table.

    Raises:
        ValueError: there is no such split or fold.
    """
    if split not in SPLITS:
        raise ValueError(f"DATASETS.LGG_SPLIT must be one of {', '.join(SPLITS)}, got {split!r}")
    if split == "fold" and not 2 <= folds <= len(patients):
        raise ValueError(f"DATASETS.LGG_FOLDS must be from 2 to {len(patients)}, got {folds}")
    if split == "fold" and not 0 <= fold < folds:
        raise ValueError(f"DATASETS.LGG_FOLD must be from 0 to LGG_FOLDS - 1 = {folds - 1}, got {fold}")
