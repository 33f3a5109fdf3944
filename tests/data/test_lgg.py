import os
import random
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from lgg_files import PATIENTS, SIDE, picture, write_lgg
from PIL import Image

from iso_d2.data import lgg, lgg_patients, slices


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The small data set, in place of the real one as long as the test runs; its folder of patients."""
    monkeypatch.setattr(lgg, "PATIENTS", PATIENTS)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("ISO_D2_CACHE", str(tmp_path / "cache"))
    lgg.register_lgg()
    yield write_lgg(tmp_path)
    monkeypatch.undo()
    lgg.register_lgg()


def test_slices_are_paired_and_in_natural_order(tree):
    whole = lgg.load_lgg()
    names = [("TCGA_A", i) for i in range(1, 13)] + [(p, i) for p in ("TCGA_B", "TCGA_C") for i in (1, 2, 3)]
    assert [(record["patient"], record["slice"]) for record in whole.records] == names
    assert whole.images.shape == (18, 3, 224, 224) and whole.labels.shape == (18, 224, 224)
    record = whole.records[13]
    assert record == {
        "file_name": str(tree / "TCGA_B" / "TCGA_B_2.tif"),
        "mask_file_name": str(tree / "TCGA_B" / "TCGA_B_2_mask.tif"),
        "image_id": "TCGA_B_2",
        "height": SIDE,
        "width": SIDE,
        "patient": "TCGA_B",
        "slice": 2,
        "placement": record["placement"],
    }
    # The head is 30 x 20 pixels from row 5, column 10; pads of 5 columns make it a square.
    where = {"top": 5, "left": 10, "height": 30, "width": 20, "pad_top": 0, "pad_left": 5, "side": 30}
    assert record["placement"] == where
    assert whole.images[13, :, 112, 112].tolist() == [100, 62, 80]
    # Of the tumour, rows 10 to 16 and columns 12 to 20, a pixel is 224 / 30 = 7.5 pixels wide.
    rows, columns = (np.flatnonzero(whole.labels[13].any(axis=axis)) for axis in (1, 0))
    assert np.unique(whole.labels[13]).tolist() == [0, 1]
    assert (rows[0], rows[-1] + 1) == pytest.approx((5 * 224 / 30, 11 * 224 / 30), abs=1)
    assert (columns[0], columns[-1] + 1) == pytest.approx((7 * 224 / 30, 15 * 224 / 30), abs=1)
    assert not whole.labels[12].any()


def test_what_lies_around_is_ignored(tree):
    for name in ("data.csv", "README.md", ".DS_Store"):
        (tree / name).write_text("x")
    (tree / ".hidden").mkdir()
    (tree / "TCGA_B" / "Thumbs.db").write_text("x")
    (tree / "TCGA_B" / "._TCGA_B_1.tif").write_text("x")
    assert len(lgg.load_lgg().records) == 18


def remove(tree, *names):
    for name in names:
        (tree / name).unlink()


def add(tree, name, array):
    Image.fromarray(array).save(tree / name)


def empty(tree):
    for path in (tree / "TCGA_B").iterdir():
        path.unlink()


IMAGE, MASK = picture(2)
FAULTS = {
    "no mask": (lambda t: remove(t, "TCGA_B/TCGA_B_2_mask.tif"), "TCGA_B has no mask of slice 2"),
    "no image": (
        lambda t: remove(t, "TCGA_B/TCGA_B_2.tif"),
        "TCGA_B has masks without images of slice 2",
    ),
    "gap": (
        lambda t: remove(t, *(f"TCGA_A/TCGA_A_{n}{m}.tif" for n in (3, 11) for m in ("", "_mask"))),
        "TCGA_A lacks, of its 12 slices, slice 3, 11",
    ),
    "too many": (
        lambda t: [add(t, f"TCGA_B/TCGA_B_4{m}.tif", a) for m, a in (("", IMAGE), ("_mask", MASK))],
        "TCGA_B has 3 slices, but there are also slice 4",
    ),
    "other name": (
        lambda t: add(t, "TCGA_B/TCGA_A_1.tif", IMAGE),
        "TCGA_B/TCGA_A_1.tif is not named TCGA_B_<slice>.tif or TCGA_B_<slice>_mask.tif",
    ),
    "empty": (empty, "TCGA_B is empty: it has no .tif files"),
    "unknown": (lambda t: (t / "patient7").mkdir(), "patient7 is none of the 3 patients"),
    "sizes": (
        lambda t: add(t, "TCGA_B/TCGA_B_2_mask.tif", MASK[:-1]),
        "TCGA_B/TCGA_B_2_mask.tif is of size (39, 40), its image of size (40, 40)",
    ),
    "values": (
        lambda t: add(t, "TCGA_B/TCGA_B_2_mask.tif", MASK // 255),
        "TCGA_B/TCGA_B_2_mask.tif has values other than 0 and 255: 1",
    ),
    "grey image": (
        lambda t: add(t, "TCGA_B/TCGA_B_2.tif", IMAGE[..., 0]),
        "TCGA_B/TCGA_B_2.tif must be of mode RGB (three channels of 8 bits), got L",
    ),
    "colour mask": (
        lambda t: add(t, "TCGA_B/TCGA_B_2_mask.tif", IMAGE),
        "TCGA_B/TCGA_B_2_mask.tif must be of mode L (one channel of 8 bits), got RGB",
    ),
    "no tif": (
        lambda t: (t / "TCGA_B/TCGA_B_2.tif").write_bytes(b"no tif"),
        "TCGA_B/TCGA_B_2.tif cannot be read (UnidentifiedImageError",
    ),
    "truncated": (
        lambda t: os.truncate(t / "TCGA_B/TCGA_B_2.tif", 2000),
        "TCGA_B/TCGA_B_2.tif cannot be read (",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_no_cache(tree, fault):
    spoil, sentence = FAULTS[fault]
    spoil(tree)
    with pytest.raises(ValueError) as caught:
        DatasetCatalog.get("lgg_train")
    message = str(caught.value)
    assert message.startswith(f"lgg, in {tree}: 1 problems. Copy the patients concerned anew")
    assert f"\n  {sentence}" in message
    assert not list((tree.parents[1]).glob("cache/*"))


def test_many_faults_are_listed_together(tree):
    for number in range(1, 12):
        (tree / "TCGA_A" / f"TCGA_A_{number}.tif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"11 problems") as caught:
        lgg.load_lgg()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + slices.LISTED + 1 and lines[-1] == "  ... and 3 more"


def test_without_the_data_set_it_says_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "lgg-mri-segmentation" / "kaggle_3m"
    message = rf"no folder {folder} \(from DETECTRON2_DATASETS\).*kaggle.com/datasets/mateuszbuda"
    with pytest.raises(FileNotFoundError, match=message):
        DatasetCatalog.get("lgg_val")
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"{folder} holds no folders of patients"):
        DatasetCatalog.get("lgg_val")


def val_slices(**split):
    lgg.register_lgg(**split)
    sides = [{r["image_id"] for r in DatasetCatalog.get(f"lgg_{side}")} for side in ("train", "val")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 18
    return sides[1]


def test_the_three_splits(tree):
    whole = {name: {f"{name}_{i}" for i in range(1, p.slices + 1)} for name, p in PATIENTS.items()}
    assert val_slices() == val_slices(split="patient") == whole["TCGA_B"]
    assert val_slices(split="image") == {"TCGA_B_1", "TCGA_A_2", "TCGA_A_11"}
    # B, A, C is the order of the table.
    assert val_slices(split="fold", fold=0, folds=2) == whole["TCGA_B"] | whole["TCGA_C"]
    assert val_slices(split="fold", fold=1, folds=3) == whole["TCGA_A"]


def test_the_tuning_split_is_within_the_training_patients(tree, monkeypatch):
    monkeypatch.setattr(lgg_patients, "TUNING_PATIENTS", 1)
    lgg.register_lgg("tune")
    sides = [{r["patient"] for r in DatasetCatalog.get(f"lgg_{side}")} for side in ("train", "val")]
    # B, which is lgg_val of the patient split, is on neither side; A is the next one
    assert sides == [{"TCGA_C"}, {"TCGA_A"}]


def test_the_tuning_split_of_all_patients():
    records = [{"patient": name, "slice": 1} for name in lgg.PATIENTS]
    sides = [
        {records[i]["patient"] for i in lgg_patients.choose_slices(side, "tune", 0, 5, lgg.PATIENTS, records)}
        for side in ("train", "val")
    ]
    hidden = {name for name, p in lgg.PATIENTS.items() if p.in_val}
    assert [len(side) for side in (*sides, hidden)] == [77, 16, 17]
    assert len(set.union(*sides, hidden)) == 110


def test_a_missing_patient_moves_no_other(tree):
    for path in (tree / "TCGA_A").iterdir():
        path.unlink()
    (tree / "TCGA_A").rmdir()
    lgg.register_lgg(split="fold", fold=0, folds=2)
    assert {r["patient"] for r in DatasetCatalog.get("lgg_val")} == {"TCGA_B", "TCGA_C"}
    with pytest.raises(ValueError, match=r"lgg_train has no slices: .* fold \(LGG_FOLD 0 of 2\).*2 patients"):
        DatasetCatalog.get("lgg_train")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"split": "random"}, "LGG_SPLIT must be one of patient, image, fold, tune, got 'random'"),
        ({"split": "fold", "folds": 1}, "LGG_FOLDS must be from 2 to 110, got 1"),
        ({"split": "fold", "folds": 111}, "LGG_FOLDS must be from 2 to 110, got 111"),
        ({"split": "fold", "fold": 5}, "LGG_FOLD must be from 0 to LGG_FOLDS - 1 = 4, got 5"),
    ],
)
def test_splits_that_do_not_exist(split, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lgg.register_lgg(**split)


def test_the_frozen_table():
    """110 patients, 3,929 slices; the table follows from seed 18 as its description says."""
    assert len(lgg.PATIENTS) == 110 and sum(p.slices for p in lgg.PATIENTS.values()) == 3929
    names = sorted(lgg.PATIENTS)
    order = list(names)
    random.Random(18).shuffle(order)
    assert list(lgg.PATIENTS) == order
    assert [name for name, p in lgg.PATIENTS.items() if p.in_val] == order[:17]
    every = [(name, i) for name in names for i in range(1, lgg.PATIENTS[name].slices + 1)]
    chosen = {(name, i) for name, p in lgg.PATIENTS.items() for i in p.val_slices}
    assert chosen == set(random.Random(18).sample(every, 589))


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
    monkeypatch.setattr(lgg.lgg_preprocessing, "THRESHOLD", 30)
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

    def stop(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iso_d2.data.segmented_images.json.dumps", stop)
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
