import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from patient_toys import SIDE, SLICES, register_patients

from iso_d2.data import lgg
from iso_d2.data.folds import fold_name, patients_of, register_folds
from iso_d2.engine.setup import load_config

ORDER = ["D", "A", "E", "B", "C"]


@pytest.fixture
def toys(tmp_path):
    register_patients("toys_train", tmp_path / "toys", "ABCDE", ORDER)


def patients(name):
    return sorted({record["patient"] for record in DatasetCatalog.get(name)})


def test_every_patient_is_in_one_fold_by_the_frozen_order(toys):
    names = [fold_name("toys_train", fold, 2, side) for fold in (0, 1) for side in ("train", "val")]
    cfg = load_config(opts=["DATASETS.TRAIN", names[::2], "DATASETS.TEST", names[1::2]])
    assert [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] == names[::2] + names[1::2]
    # D A E B C: the first, third and fifth; the others
    assert patients("toys_train_fold0of2_val") == ["C", "D", "E"] == patients("toys_train_fold1of2_train")
    assert patients("toys_train_fold1of2_val") == ["A", "B"] == patients("toys_train_fold0of2_train")
    assert patients_of("toys_train") == ORDER


def test_without_an_order_it_is_that_of_the_records(tmp_path):
    register_patients("toys_plain", tmp_path / "plain", "XZY")
    register_folds(["toys_plain_fold1of3_val"])
    assert patients("toys_plain_fold1of3_val") == ["Z"]


def test_a_missing_patient_moves_no_other(tmp_path):
    register_patients("toys_some", tmp_path / "some", "BCDE", ORDER)
    register_folds(["toys_some_fold0of2_val", "toys_some_fold1of5_val"])
    assert patients("toys_some_fold0of2_val") == ["C", "D", "E"]
    with pytest.raises(ValueError, match="of the 4 patients of toys_some none is on that side"):
        DatasetCatalog.get("toys_some_fold1of5_val")


def test_arrays_are_those_of_the_dicts(toys):
    register_folds(["toys_train_fold1of2_val"])
    metadata = MetadataCatalog.get("toys_train_fold1of2_val")
    arrays = metadata.load_arrays()
    records = DatasetCatalog.get("toys_train_fold1of2_val")
    assert arrays.images.shape == (2 * SLICES, 3, SIDE, SIDE) and metadata.image_size == SIDE
    for image, record in zip(arrays.images, records, strict=True):
        assert np.array_equal(image, record["image_array"])


def test_what_is_no_fold_is_named(toys):
    with pytest.raises(ValueError, match="of 2 folds there are 0 to 1, got 2"):
        register_folds(["toys_train_fold2of2_val"])
    with pytest.raises(ValueError, match="shapes_train has no patients"):
        register_folds(["shapes_train_fold0of2_val"])
    DatasetCatalog.register("toys_nameless", lambda: [{"file_name": "x.png"}])
    try:
        with pytest.raises(ValueError, match="'toys_nameless' names no patients"):
            patients_of("toys_nameless")
    finally:
        DatasetCatalog.remove("toys_nameless")


def test_folds_of_lgg_keep_the_frozen_table(real_data):
    real_data("lgg-mri-segmentation", "kaggle_3m")
    parts = [fold_name("lgg_train", fold, 3, "val") for fold in range(3)]
    register_folds(parts)
    found = [patients(name) for name in parts]
    assert sorted(name for names in found for name in names) == patients("lgg_train")
    for fold, names in enumerate(found):
        assert all(lgg.PATIENTS[name].index % 3 == fold for name in names)
    whole = {r["patient"] for side in ("train", "val") for r in DatasetCatalog.get(f"lgg_fold0of5_{side}")}
    assert sorted(whole) == patients("lgg") == sorted([*patients("lgg_train"), *patients("lgg_val")])
