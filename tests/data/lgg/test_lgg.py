import dataclasses
import os
import re
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from lgg_files import PATIENTS
from PIL import Image

from iso_d2.data import lgg
from iso_d2.engine.setup import load_config


def test_without_the_data_set_it_says_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "lgg-mri-segmentation" / "kaggle_3m"
    message = rf"no folder {folder} \(from DETECTRON2_DATASETS\).*kaggle.com/datasets/mateuszbuda"
    with pytest.raises(FileNotFoundError, match=message):
        DatasetCatalog.get("lgg_val")
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"{folder} holds no folders of patients"):
        DatasetCatalog.get("lgg_val")


def val_slices(split):
    name = "lgg" if split == "patient" else f"lgg_{split}"
    sides = [{r["image_id"] for r in DatasetCatalog.get(f"{name}_{side}")} for side in ("train", "val")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 18
    return sides[1]


def test_splits_are_in_the_names(tree):
    whole = {name: {f"{name}_{i}" for i in range(1, p.slices + 1)} for name, p in PATIENTS.items()}
    lgg.named_by_split(["lgg_fold0of2_val", "lgg_sem_seg_fold1of3_train"])
    assert val_slices("patient") == whole["TCGA_B"]
    assert val_slices("image") == {"TCGA_B_1", "TCGA_A_2", "TCGA_A_11"}
    # B, A, C is the order of the table.
    assert val_slices("fold0of2") == whole["TCGA_B"] | whole["TCGA_C"]
    assert val_slices("fold1of3") == whole["TCGA_A"]
    assert val_slices("patient") == whole["TCGA_B"]
    assert len(DatasetCatalog.get("lgg_sem_seg_fold0of2_train")) == len(whole["TCGA_A"])
    with pytest.raises(ValueError, match="the train side of the LGG split tune has no slices"):
        DatasetCatalog.get("lgg_tune_train")


def test_two_configs_of_different_splits_live_in_one_process(tree):
    def sides(cfg):
        return [
            [r["image_id"] for r in DatasetCatalog.get(n[0])] for n in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        ]

    names = ["DATASETS.TRAIN", ("lgg_train",), "DATASETS.TEST", ("lgg_val", "lgg_train", "coco_pbc_test")]
    first = load_config(opts=names)
    before, catalog = sides(first), dict(DatasetCatalog)
    second = load_config(opts=[*names, "DATASETS.LGG_SPLIT", "image"])
    third = load_config(opts=[*names, "DATASETS.LGG_SPLIT", "fold", "DATASETS.LGG_FOLD", 1])
    assert dict(DatasetCatalog) == catalog, "reading a config changed a catalog"
    assert first.DATASETS.TEST == ("lgg_val", "lgg_train", "coco_pbc_test")
    assert second.DATASETS.TEST == ("lgg_image_val", "lgg_image_train", "coco_pbc_test")
    assert third.DATASETS.TRAIN == ("lgg_fold1of5_train",)
    assert sides(first) == before and len({str(sides(cfg)) for cfg in (first, second, third)}) == 3


def test_the_split_of_a_config_that_was_written_down_can_be_changed(tmp_path):
    """The config.yaml of a run has names with the split in them."""
    names = ["DATASETS.TRAIN", ("lgg_train",), "DATASETS.TEST", ("lgg_sem_seg_val", "shapes_test")]
    path = tmp_path / "config.yaml"

    def train_and_test(*opts):
        datasets = load_config(path, opts).DATASETS
        return *datasets.TRAIN, *datasets.TEST

    path.write_text(load_config(opts=[*names, "DATASETS.LGG_SPLIT", "image"]).dump())
    assert "lgg_image_train" in path.read_text()
    assert train_and_test() == ("lgg_image_train", "lgg_sem_seg_image_val", "shapes_test")
    for split, name in (("tune", "tune_"), ("fold", "fold0of5_"), ("patient", ""), ("image", "image_")):
        expected = (f"lgg_{name}train", f"lgg_sem_seg_{name}val", "shapes_test")
        assert train_and_test("DATASETS.LGG_SPLIT", split) == expected
    path.write_text(load_config(opts=[*names, "DATASETS.LGG_SPLIT", "fold"]).dump())
    assert train_and_test("DATASETS.LGG_FOLD", 3)[0] == "lgg_fold3of5_train"
    path.write_text("DATASETS: {TRAIN: [lgg_train], LGG_SPLIT: fold, LGG_FOLD: 7}")
    assert train_and_test("DATASETS.LGG_FOLDS", 8) == ("lgg_fold7of8_train",)


def test_names_and_split_that_contradict_each_other():
    names = ["DATASETS.TRAIN", ("lgg_image_train",), "DATASETS.TEST", ("lgg_sem_seg_fold1of3_val",)]
    stays = load_config(opts=names).DATASETS
    assert stays.TRAIN == ("lgg_image_train",) and stays.TEST == ("lgg_sem_seg_fold1of3_val",)
    with pytest.raises(ValueError, match=r"split tune, but names lgg_image_train\..* such as lgg_train\.$"):
        load_config(opts=[*names, "DATASETS.LGG_SPLIT", "tune"])
    with pytest.raises(ValueError, match=r"names lgg_sem_seg_fold1of3_val\..* such as lgg_sem_seg_val\.$"):
        load_config(opts=[*names[2:], "DATASETS.LGG_SPLIT", "fold", "DATASETS.LGG_FOLDS", 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"LGG_SPLIT": "random"}, "LGG_SPLIT must be one of patient, image, fold, tune, got 'random'"),
        ({"LGG_SPLIT": "fold", "LGG_FOLDS": 111}, "LGG_FOLDS must be from 2 to 110, got 111"),
        ({"TRAIN": ("lgg_fold7of5_train",)}, "LGG_FOLD must be from 0 to LGG_FOLDS - 1 = 4, got 7"),
    ],
)
def test_splits_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(opts=[part for key, value in options.items() for part in (f"DATASETS.{key}", value)])


def test_a_missing_patient_moves_no_other(tree):
    shutil.rmtree(tree / "TCGA_A")
    lgg.named_by_split(["lgg_fold0of2_val"])
    assert {r["patient"] for r in DatasetCatalog.get("lgg_fold0of2_val")} == {"TCGA_B", "TCGA_C"}
    with pytest.raises(ValueError, match=r"the train side of the LGG split fold0of2 has no .* 2 patients"):
        DatasetCatalog.get("lgg_fold0of2_train")


def test_the_cache_is_used_and_follows_the_files(tree, monkeypatch):
    cache = tree.parents[1] / "cache"
    DatasetCatalog.get("lgg_train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lgg, "preprocess_slices", lambda *args: pytest.fail("preprocessed twice"))
        for side in ("train", "val"):
            DatasetCatalog.get(f"lgg_{side}")
            MetadataCatalog.get(f"lgg_{side}").load_arrays()
    assert len(list(cache.iterdir())) == 1
    os.utime(tree / "TCGA_B" / "TCGA_B_1_mask.tif", (1, 1))
    lgg.load_lgg()
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(lgg, "PREPROCESSING", dataclasses.replace(lgg.PREPROCESSING, threshold=30))
    lgg.load_lgg()
    assert len(list(cache.iterdir())) == 3


def test_a_moved_data_set_keeps_its_cache(tree, tmp_path, monkeypatch):
    lgg.load_lgg()
    (tmp_path / "elsewhere").mkdir()
    tree.parent.rename(tmp_path / "elsewhere" / "lgg-mri-segmentation")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(lgg, "preprocess_slices", lambda *args: pytest.fail("preprocessed twice"))
    assert all(os.path.isfile(record["file_name"]) for record in lgg.load_lgg().records)


def test_an_interrupted_run_leaves_no_cache(tree, monkeypatch):
    """The arrays stand and the records are being written when it is stopped."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iso_d2.data.arrays.json.dumps", stop)
        patch.setattr(lgg, "_cache_key", lambda *args: "key")
        with pytest.raises(KeyboardInterrupt):
            lgg.load_lgg()
    assert list((tree.parents[1] / "cache").iterdir()) == []
    assert len(lgg.load_lgg().records) == 18


def test_slices_for_semantic_segmentation(tree):
    metadata = MetadataCatalog.get("lgg_sem_seg_val")
    assert metadata.evaluator_type == "sem_seg" and metadata.ignore_label == 255
    assert metadata.stuff_classes == ["background", "tumour"]
    dicts = DatasetCatalog.get("lgg_sem_seg_val")
    assert [r["image_id"] for r in dicts] == ["TCGA_B_1", "TCGA_B_2", "TCGA_B_3"]
    for record, expected in zip(dicts, DatasetCatalog.get("lgg_val"), strict=True):
        image, labels = (np.asarray(Image.open(record[key])) for key in ("file_name", "sem_seg_file_name"))
        assert image.shape == (record["height"], record["width"], 3) == (224, 224, 3)
        assert (image == expected["image_array"].transpose(1, 2, 0)).all()
        assert (labels == expected["sem_seg_array"]).all()
    assert np.unique(labels).tolist() == [0, 1]
    assert len(DatasetCatalog.get("lgg_sem_seg_train")) == 15
