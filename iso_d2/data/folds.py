"""Folds of patients, for cross-validation: any data set of slices, divided by patient.

``<data set>_fold<i>of<k>_val`` holds every k-th patient of a data set, from the i-th on, counted from 0, and
``..._train`` all others: ``phantom_train_fold0of5_val``, ``lgg_train_fold2of10_train``. The order of the
patients is the set's own (``patients`` of its metadata, for LGG the frozen table), else that of the records.
"""

import functools
import re

from detectron2.data import DatasetCatalog, MetadataCatalog

from .arrays import SEGMENTATION
from .catalog import register

_NAME = re.compile(r"(.+)_fold(\d+)of(\d+)_(train|val)")


def fold_name(dataset, fold, folds, side):
    """str: the data set of one side, "train" or "val", of part `fold` (from 0) of `folds` of another."""
    return f"{dataset}_fold{fold}of{folds}_{side}"


def patients_of(dataset):
    """list[str]: the patients of a registered data set, in its order; those that are not there left out.

    Raises:
        ValueError: its records name no patients.
    """
    return _order(dataset, DatasetCatalog.get(dataset))


def _order(dataset, records):
    if not all("patient" in record for record in records):
        raise ValueError(
            f"Data set {dataset!r} names no patients, by whom it could be divided into folds. Sets of slices "
            "do, such as lgg_train and phantom_train (iso_d2.data.arrays.register_segmented_images)."
        )
    present = dict.fromkeys(record["patient"] for record in records)
    frozen = MetadataCatalog.get(dataset).get("patients")
    return [name for name in frozen if name in present] if frozen else list(present)


def empty_fold(dataset, folds):
    """int or None: the first fold of a data set without patients, if there is one.

    A frozen order may name patients that the set has not, such as those of the other side of a split.
    """
    present = set(patients_of(dataset))
    order = MetadataCatalog.get(dataset).get("patients") or list(present)
    return next((fold for fold in range(folds) if present.isdisjoint(order[fold::folds])), None)


def register_folds(names):
    """Register those of the data sets (sequence[str]) that are folds of others, unless they are there.

    Raises:
        ValueError: there is no such fold, or the other data set is none of slices.
    """
    for name in names:
        said = _NAME.fullmatch(name)
        if said and name not in DatasetCatalog and said[1] in DatasetCatalog:
            _register(name, said[1], int(said[2]), int(said[3]), said[4])


def _register(name, dataset, fold, folds, side):
    if not fold < folds:
        raise ValueError(
            f"Data set {name!r}: of {folds} folds there are 0 to {folds - 1}, got {fold}. Correct the name."
        )
    metadata = MetadataCatalog.get(dataset)
    if metadata.get("evaluator_type") != "medical_segmentation":
        raise ValueError(
            f"Data set {name!r}: {dataset} has no patients. Folds are of sets of slices, such as lgg_train."
        )
    choose = functools.partial(_choose, name, dataset, fold, folds, side)

    def dataset_dicts():
        records = DatasetCatalog.get(dataset)
        return [records[index] for index in choose(records)]

    def load_arrays():
        whole = metadata.load_arrays()
        return whole.select(choose(whole.records))

    register(
        name,
        dataset_dicts,
        evaluator_type=metadata.evaluator_type,
        load_arrays=load_arrays,
        image_size=metadata.image_size,
        patients=metadata.get("patients"),
        **SEGMENTATION,
    )


def _choose(name, dataset, fold, folds, side, records):
    # of all patients, so that one that is missing moves no other to another fold
    order = list(MetadataCatalog.get(dataset).get("patients") or _order(dataset, records))
    in_val = set(order[fold::folds])
    chosen = [i for i, record in enumerate(records) if (record["patient"] in in_val) is (side == "val")]
    if not chosen:
        number = len({record["patient"] for record in records})
        raise ValueError(
            f"Data set {name!r} has no slices: of the {number} patients of {dataset} none is on that side. "
            f"Take fewer folds than {folds}."
        )
    return chosen
