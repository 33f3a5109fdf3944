"""CIFAR's files, written as its page describes them, small."""

import dataclasses

import numpy as np

from iso_d2.data import cifar

# Images of each file of the small sets
COUNT = {"train": 4, "test": 3}
SMALL10 = dataclasses.replace(cifar.CIFAR10, images_per_file=COUNT)
SMALL100 = dataclasses.replace(cifar.CIFAR100, images_per_file=COUNT)
FILES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in (1, 2, 3, 4, 5)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}


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
    """Write a set as Python 2 pickled it."""
    folder.mkdir(parents=True)
    return _write(folder, name, "", _python_file)


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
    key = b"labels" if name == "cifar10" else b"fine_labels"
    return python2_pickle({key: labels.tolist(), b"data": pixels})


def python2_pickle(entries):
    """Bytes as of Python 2's cPickle.dumps(entries, 2) for a dict of lists of small integers and arrays."""
    body = b"".join(_string(key) + _value(value) for key, value in entries.items())
    return b"\x80\x02}(" + body + b"u."


def _string(text):
    return b"U" + bytes([len(text)]) + text


def _value(value):
    if isinstance(value, list):
        return b"](" + b"".join(b"K" + bytes([item]) for item in value) + b"e"
    shape = b"".join(b"M" + int(side).to_bytes(2, "little") for side in value.shape)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    raw = value.tobytes()
    return (
        array + b"(K\x01" + shape + b"\x86" + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
