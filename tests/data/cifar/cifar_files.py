"""CIFAR's files, written as its page describes them, small."""

import dataclasses
import hashlib
import pickle

import numpy as np

from iso_d2.data import cifar

# Images of each file of the small sets
COUNT = {"train": 4, "test": 3}
FILES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in (1, 2, 3, 4, 5)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}


def _small(dataset):
    official = type("Small", (dataset.official,), {})
    sizes = {split: count * len(FILES[dataset.name][split]) for split, count in COUNT.items()}
    return dataclasses.replace(dataset, sizes=sizes, official=official)


SMALL10, SMALL100 = _small(cifar.CIFAR10), _small(cifar.CIFAR100)


def content(seed, count, classes):
    """Pixels (count, 3072) and labels (count,) of one file."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, classes, count)


def write_binary(folder, name):
    """Write a set in the binary version: a byte each label, then 3,072 of pixels.

    Returns:
        dict: split -> (pixels, labels) of all its files.
    """
    folder.mkdir(parents=True)
    return _write(folder, name, ".bin", _binary_file)


def write_python(folder, name):
    """Write a set in the python version, and take its files for the official ones."""
    folder.mkdir(parents=True)
    written = _write(folder, name, "", _python_file)
    official = (SMALL10 if name == "cifar10" else SMALL100).official
    meta = folder / official.meta["filename"]
    meta.write_bytes(pickle.dumps({official.meta["key"]: []}))
    official.meta = {**official.meta, "md5": _md5(meta)}
    for split in ("train", "test"):
        files = [[file, _md5(folder / file)] for file in FILES[name][split]]
        setattr(official, f"{split}_list", files)
    return written


def _md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _write(folder, name, suffix, encode):
    written = {}
    for split, files in FILES[name].items():
        parts = []
        for file in files:
            pixels, labels = content(len(parts), COUNT[split], 10 if name == "cifar10" else 100)
            (folder / f"{file}{suffix}").write_bytes(encode(name, pixels, labels))
            parts.append((pixels, labels))
        written[split] = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return written


def _binary_file(name, pixels, labels):
    coarse = b"" if name == "cifar10" else b"\x13"
    return b"".join(
        coarse + bytes([label]) + row.tobytes() for row, label in zip(pixels, labels, strict=True)
    )


def _python_file(name, pixels, labels):
    key = "labels" if name == "cifar10" else "fine_labels"
    return pickle.dumps({key: labels.tolist(), "data": pixels})
