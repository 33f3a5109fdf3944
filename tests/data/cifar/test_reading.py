import hashlib
import os
import pickle

import numpy as np
import pytest
from cifar_files import COUNT, SMALL10, SMALL100, content, write_binary, write_python
from detectron2.data import DatasetCatalog, MetadataCatalog

from iso_d2.data.cifar import CIFAR100, load_cifar, reading

SETS = {"cifar10": SMALL10, "cifar100": SMALL100}
FOLDERS = {
    ("cifar10", write_binary): "cifar-10-batches-bin",
    ("cifar10", write_python): "cifar-10-batches-py",
    ("cifar100", write_binary): "cifar-100-binary",
    ("cifar100", write_python): "cifar-100-python",
}


@pytest.mark.parametrize(("name", "write"), FOLDERS)
def test_both_versions_of_both_sets(tmp_path, name, write):
    written = write(tmp_path / FOLDERS[name, write], name)
    for split, (pixels, labels) in written.items():
        loaded = load_cifar(SETS[name], split, tmp_path)
        assert loaded.images.dtype == np.uint8 and loaded.labels.dtype == np.int64
        # 1,024 red, 1,024 green, 1,024 blue, each row by row
        assert loaded.images.shape == (len(pixels), 3, 32, 32)
        assert loaded.images[2, 1, 5, 7] == pixels[2, 1024 + 5 * 32 + 7]
        assert (loaded.images.reshape(-1, 3072) == pixels).all()
        assert loaded.labels.tolist() == labels.tolist()


def test_the_parts_to_choose_settings_by_are_the_training_images(tmp_path, monkeypatch):
    pixels, labels = write_binary(tmp_path / FOLDERS["cifar10", write_binary], "cifar10")["train"]
    monkeypatch.setattr(reading, "TUNING_SPLITS", {"train45k": slice(None, 15), "val5k": slice(15, None)})
    first, rest = (load_cifar(SETS["cifar10"], split, tmp_path) for split in ("train45k", "val5k"))
    assert (len(first.images), len(rest.images)) == (15, 5)
    assert np.concatenate([first.labels, rest.labels]).tolist() == labels.tolist()
    assert (np.concatenate([first.images, rest.images]).reshape(-1, 3072) == pixels).all()


def test_the_binary_version_is_taken_where_there_are_both(tmp_path):
    write_python(tmp_path / "cifar-100-python", "cifar100")
    binary = write_binary(tmp_path / "cifar-100-binary", "cifar100")
    (tmp_path / "cifar-100-python" / "train").unlink()
    assert load_cifar(SMALL100, "train", tmp_path).labels.tolist() == binary["train"][1].tolist()


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    message = (
        rf"cifar10: neither cifar-10-batches-bin nor cifar-10-batches-py is in {tmp_path} \(from "
        r"DETECTRON2_DATASETS\).*python tools/prepare_cifar.py cifar10"
    )
    with pytest.raises(FileNotFoundError, match=message):
        DatasetCatalog.get("cifar10_train")
    write_binary(tmp_path / "cifar-10-batches-bin", "cifar10")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"cifar10: .*data_batch_3\.bin is missing. Remove the folder"
    ):
        load_cifar(SMALL10, "train", tmp_path)


def test_a_wrong_size_is_named(tmp_path):
    write_binary(tmp_path / "cifar-100-binary", "cifar100")
    with open(tmp_path / "cifar-100-binary" / "test.bin", "ab") as file:
        file.write(b"\0" * 3074)
    message = r"test\.bin: it has 12,296 bytes instead of 9,222 \(3 images\). Remove the folder"
    with pytest.raises(ValueError, match=message):
        load_cifar(SMALL100, "test", tmp_path)


def test_the_official_sizes_are_asked_for(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, size in (("train", 153_700_000), ("test", 30_740_000)):
        with open(folder / f"{name}.bin", "wb") as file:
            file.truncate(size - 1)
        with pytest.raises(ValueError, match=f"{size - 1:,} bytes instead of {size:,}"):
            load_cifar(CIFAR100, name, tmp_path)


def test_a_label_out_of_range_is_named(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    write_binary(folder, "cifar10")
    pixels, labels = content(0, COUNT["test"], 10)
    labels[1] = 10
    rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
    (folder / "test_batch.bin").write_bytes(rows.tobytes())
    message = r"test_batch.*: image 1 has the label 10, but there are 10 classes \(0 to 9\)"
    with pytest.raises(ValueError, match=message):
        load_cifar(SMALL10, "test", tmp_path)


class Touch:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_is_not_the_official_one_is_not_read(tmp_path):
    write_python(tmp_path / "cifar-100-python", "cifar100")
    evil = pickle.dumps({"data": Touch(tmp_path / "made")})
    (tmp_path / "cifar-100-python" / "train").write_bytes(evil)
    digest = hashlib.md5(evil).hexdigest()
    message = (
        rf"cifar-100-python/train is not the official file: its MD5 checksum is {digest} instead of .*Remove"
    )
    with pytest.raises(ValueError, match=message):
        load_cifar(SMALL100, "train", tmp_path)
    assert not (tmp_path / "made").exists()
    pickle.loads(evil)
    assert (tmp_path / "made").exists(), "the pickle was harmless, so the test showed nothing"


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_missing_or_broken_file_of_the_python_version_is_named(tmp_path, name):
    write_python(tmp_path / "cifar-10-batches-py", "cifar10")
    path = tmp_path / "cifar-10-batches-py" / name
    path.write_bytes(path.read_bytes()[:-1])
    for fault in (f"{path} is not the official file: its MD5", f"{path} is missing"):
        with pytest.raises(ValueError, match=rf"^{fault}.* Remove the folder .*prepare_cifar.py cifar10"):
            load_cifar(SMALL10, "train", tmp_path)
        path.unlink(missing_ok=True)


def test_registered_sets():
    for name, number in (("cifar10", 10), ("cifar100", 100)):
        for split in ("train", "test", "train45k", "val5k"):
            metadata = MetadataCatalog.get(f"{name}_{split}")
            assert metadata.evaluator_type == "classification"
            assert len(set(metadata.thing_classes)) == len(metadata.thing_classes) == number
    assert MetadataCatalog.get("cifar10_test").thing_classes[3] == "cat"
    assert MetadataCatalog.get("cifar100_test").thing_classes[99] == "worm"


def test_real_cifar100(real_data):
    """Against the figures of its page: 500 and 100 images of each of the 100 classes, in the order listed."""
    folder = real_data("cifar-100-binary")
    assert (folder / "fine_label_names.txt").read_text().split() == list(CIFAR100.classes)
    train, test = (MetadataCatalog.get(f"cifar100_{split}").load_arrays() for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert np.bincount(train.labels).tolist() == [500] * 100
    assert np.bincount(test.labels).tolist() == [100] * 100
    # The channel means of the training images that are in common use
    assert train.images.mean(axis=(0, 2, 3)) / 255 == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)


def test_real_cifar10(real_data):
    folder = real_data("cifar-10-batches-bin")
    digest = hashlib.md5((folder / "test_batch.bin").read_bytes()).hexdigest()
    assert digest == "803d5f7f4d78ea53de84dbe85f74fb6d"
    loaded = MetadataCatalog.get("cifar10_test").load_arrays()
    assert np.bincount(loaded.labels).tolist() == [1000] * 10
    assert len(DatasetCatalog.get("cifar10_train")) == 50_000
    parts = [DatasetCatalog.get(f"cifar10_{part}") for part in ("train45k", "val5k")]
    assert list(map(len, parts)) == [45_000, 5_000]
