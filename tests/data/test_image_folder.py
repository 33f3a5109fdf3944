import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from iso_d2.config import add_iso_config
from iso_d2.data import AlbumentationsMapper, load_image_folder, register_image_folder

# The augmentation of the paper: a random part of the image at 224x224 and a flip; in the test the shorter
# side 256 and the middle 224x224.
PAPER_TRAIN = [["RandomResizedCrop", {"size": [224, 224]}], ["HorizontalFlip", {"p": 0.5}]]
PAPER_TEST = [["SmallestMaxSize", {"max_size": 256}], ["CenterCrop", {"height": 224, "width": 224}]]
NAME = "folder_of_the_test"


@pytest.fixture
def root(tmp_path):
    """Two classes with 2 and 1 images; a file and folders that do not count."""
    for path in ("cat/b.jpg", "cat/a.JPEG", "dog/c.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        pixels = np.zeros((128, 192, 3), np.uint8)
        pixels[:, 80:112] = (200, 100, 50)
        Image.fromarray(pixels).save(tmp_path / path)
    (tmp_path / "cat" / "notes.txt").write_text("")
    (tmp_path / "cat" / "._b.jpg").write_text("")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "list.txt").write_text("")
    yield tmp_path
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def test_images_and_labels_by_folder(root):
    register_image_folder(NAME, root)
    assert DatasetCatalog.get(NAME) == [
        {"file_name": str(root / "cat/a.JPEG"), "image_id": 0, "label": 0},
        {"file_name": str(root / "cat/b.jpg"), "image_id": 1, "label": 0},
        {"file_name": str(root / "dog/c.png"), "image_id": 2, "label": 1},
    ]
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.thing_classes, metadata.evaluator_type) == (["cat", "dog"], "classification")
    assert metadata.get("load_arrays") is None


def test_class_names_given_decide_the_labels(root, caplog):
    register_image_folder(NAME, root, classes=["dog", "bird", "cat"])
    assert [record["label"] for record in DatasetCatalog.get(NAME)] == [0, 2, 2]
    assert "no images of class 'bird'" in caplog.text
    register_image_folder(NAME, root, classes=["dog"])
    with pytest.raises(
        ValueError, match=r"the folder 'cat', which is none of the 1 classes .*register the set"
    ):
        DatasetCatalog.get(NAME)


def test_registering_again_replaces(root):
    register_image_folder(NAME, root / "nowhere")
    with pytest.raises(FileNotFoundError, match=rf"nowhere does not exist. The data set '{NAME}'"):
        DatasetCatalog.get(NAME)
    register_image_folder(NAME, root)
    assert len(DatasetCatalog.get(NAME)) == 3


def test_folders_without_images_are_named(root):
    with pytest.raises(FileNotFoundError, match=rf"{NAME}' has no images. It must hold one folder a class"):
        load_image_folder(NAME, root / "cat")


def test_imagenet_is_found_under_the_root(root, tmp_path_factory, monkeypatch):
    data_sets = tmp_path_factory.mktemp("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_sets))
    with pytest.raises(
        FileNotFoundError, match=r"val does not exist. imagenet_val must lie there.*Set DETECTRON2_DATASETS"
    ):
        DatasetCatalog.get("imagenet_val")
    (data_sets / "imagenet").mkdir()
    (data_sets / "imagenet" / "val").symlink_to(root)
    assert [record["label"] for record in DatasetCatalog.get("imagenet_val")] == [0, 0, 1]
    assert MetadataCatalog.get("imagenet_val").thing_classes == ["cat", "dog"]
    del MetadataCatalog.get("imagenet_val").thing_classes


def classifier_config():
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.ALBUMENTATIONS.TRAIN = PAPER_TRAIN
    cfg.INPUT.ALBUMENTATIONS.TEST = PAPER_TEST
    return cfg


def test_the_test_pipeline_of_the_paper(root):
    record = load_image_folder(NAME, root)[2]
    mapped = AlbumentationsMapper(classifier_config(), False)(record)
    assert mapped["label"] == 1
    image = mapped["image"]
    assert image.dtype == torch.uint8 and image.shape == (3, 224, 224)
    # 192x128 becomes 384x256, and columns 80 to 112 become 160 to 224, less the 80 cut off at the left.
    assert image[:, 0, 84:140].float().mean(dim=1).tolist() == pytest.approx([200, 100, 50], abs=1)
    assert image[:, :, :76].max() <= 1 and image[:, :, 148:].max() <= 1


def test_the_training_pipeline_of_the_paper(root):
    record = load_image_folder(NAME, root)[0]
    mapper = AlbumentationsMapper(classifier_config(), True)
    images = [mapper(record) for _ in range(4)]
    assert {(tuple(x["image"].shape), x["image"].dtype, x["label"]) for x in images} == {
        ((3, 224, 224), torch.uint8, 0)
    }
    assert len({x["image"].numpy().tobytes() for x in images}) > 1


def test_other_architectures_still_may_not_crop_in_the_test():
    cfg = classifier_config()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(ValueError, match="predictions cannot be brought back from CenterCrop"):
        AlbumentationsMapper(cfg, False)


@pytest.mark.parametrize(("image_format", "pixel"), [("RGB", [200, 100, 50]), ("BGR", [50, 100, 200])])
def test_images_that_are_arrays_are_mapped_too(image_format, pixel):
    array = np.empty((3, 8, 10), np.uint8)
    array[:] = np.array([200, 100, 50])[:, None, None]
    cfg = classifier_config()
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.ALBUMENTATIONS.TRAIN = [["HorizontalFlip", {"p": 0.5}]]
    record = {"image_id": 3, "height": 8, "width": 10, "label": 4, "image_array": array}
    mapped = AlbumentationsMapper(cfg, True)(record)
    assert mapped.keys() == {"image_id", "height", "width", "label", "image"}
    assert mapped["image"].shape == (3, 8, 10) and mapped["image"][:, 2, 3].tolist() == pixel
    assert record["image_array"] is array
