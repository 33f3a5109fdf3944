"""Which loader the trainer takes for classification data."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from iso_d2.config import add_iso_config
from iso_d2.data import LabelledImages, register_image_folder, register_labelled_images
from iso_d2.data.batches import EvaluationBatches, TrainingBatches
from iso_d2.engine import Trainer
from iso_d2.engine.checks import check_same_classes
from iso_d2.engine.setup import load_config

NAMES = ("toy_arrays", "toy_folder")


@pytest.fixture(autouse=True)
def data(tmp_path):
    images = np.arange(10 * 3 * 8 * 8, dtype=np.uint8).reshape(10, 3, 8, 8)
    loaded = LabelledImages(images, np.arange(10) % 2)
    register_labelled_images(NAMES[0], lambda: loaded, ["a", "b"])
    for number, label in enumerate("aab"):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(images[number].transpose(1, 2, 0)).save(tmp_path / label / f"{number}.png")
    register_image_folder(NAMES[1], tmp_path)
    yield images
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(name):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.ALBUMENTATIONS.TRAIN = cfg.INPUT.ALBUMENTATIONS.TEST = []
    cfg.TEST.BATCH_SIZE = 4
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


def test_arrays_come_as_whole_batches():
    cfg = config("toy_arrays")
    train, test = Trainer.build_train_loader(cfg), Trainer.build_test_loader(cfg, "toy_arrays")
    assert isinstance(train, TrainingBatches) and isinstance(test, EvaluationBatches)
    assert next(iter(train))["images"].shape == (2, 3, 8, 8)
    assert [len(batch["labels"]) for batch in test] == [4, 4, 2]


def test_the_same_images_through_the_mapper(data):
    cfg = config("toy_arrays")
    cfg.INPUT.IN_MEMORY = False
    batches = list(Trainer.build_test_loader(cfg, "toy_arrays"))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    records = [record for batch in batches for record in batch]
    assert [record["label"] for record in records] == [0, 1] * 5
    assert torch.equal(torch.stack([record["image"] for record in records]), torch.from_numpy(data))
    trained_on = next(iter(Trainer.build_train_loader(cfg)))
    assert {tuple(record["image"].shape) for record in trained_on} == {(3, 8, 8)}


def test_folders_come_through_the_mapper(data):
    cfg = config("toy_folder")
    (batch,) = Trainer.build_test_loader(cfg, "toy_folder")
    assert [record["label"] for record in batch] == [0, 0, 1]
    assert torch.equal(batch[2]["image"], torch.from_numpy(data[2]))
    assert len(next(iter(Trainer.build_train_loader(cfg)))) == 2


def test_class_lists_must_agree(tmp_path):
    cfg = config("toy_folder")
    cfg.DATASETS.TEST = ("toy_arrays",)
    DatasetCatalog.get("toy_folder")
    check_same_classes(cfg)
    (tmp_path / "c").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "c" / "0.png")
    register_image_folder("toy_folder", tmp_path)
    DatasetCatalog.get("toy_folder")
    with pytest.raises(ValueError, match="'toy_arrays' has other classes than 'toy_folder'"):
        check_same_classes(cfg)


def test_folders_are_registered_from_the_config(tmp_path):
    load_config(opts=["DATASETS.IMAGE_FOLDERS", [["toy_folder", str(tmp_path)]]])
    assert len(DatasetCatalog.get("toy_folder")) == 3
    with pytest.raises(ValueError, match=r"DATASETS\.IMAGE_FOLDERS must be \[name, folder\], got \['x'\]"):
        load_config(opts=["DATASETS.IMAGE_FOLDERS", [["x"]]])


def test_segmented_slices_come_as_whole_batches_unless_augmented():
    cfg = config("phantom_train")
    cfg.MODEL.META_ARCHITECTURE = "UNetSegmentor"
    batches = Trainer.build_train_loader(cfg)
    assert isinstance(batches, TrainingBatches) and not batches.flip
    batch = next(iter(batches))
    assert batch["images"].shape == (2, 3, 64, 64) and batch["images"].dtype == torch.uint8
    assert batch["labels"].shape == (2, 64, 64) and set(batch["labels"].unique().tolist()) <= {0, 1}
    tested = next(iter(Trainer.build_test_loader(cfg, "phantom_test")))
    assert len(tested) == 4 and tested[0]["sem_seg"].shape == (64, 64) and "placement" in tested[0]

    cfg.INPUT.ALBUMENTATIONS.TRAIN = [["HorizontalFlip", {"p": 1.0}]]
    record = next(iter(Trainer.build_train_loader(cfg)))[0]
    original = next(r for r in DatasetCatalog.get("phantom_train") if r["image_id"] == record["image_id"])
    assert torch.equal(record["image"], torch.from_numpy(original["image_array"][:, :, ::-1].copy()))
    assert (record["sem_seg"].numpy() == original["sem_seg_array"][:, ::-1]).all()


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.META_ARCHITECTURE", "SemanticSegmentor"), ("INPUT.MAPPER", "detectron2")]
)
def test_slices_are_for_unets_and_the_albumentations_mapper(key, value):
    cfg = config("phantom_train")
    cfg.MODEL.META_ARCHITECTURE = "UNetSegmentor"
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=f"'phantom_train' is for .*UNetSegmentor.*got .*{value}"):
        Trainer(cfg)
