"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

    cifar10_train, cifar100_train    50,000 images of 32x32 pixels
    cifar10_test, cifar100_test      10,000
    cifar10_train45k, cifar10_val5k (and cifar100_...)
                                     the first 45,000 training images and the other 5,000, to choose
                                     settings by

They lie in the data set root as the official archives unpack: the binary version (``cifar-10-batches-bin``,
``cifar-100-binary``) or, where there is none, the python version (``cifar-10-batches-py``,
``cifar-100-python``). CIFAR-100 is labelled by its 100 fine classes.
"""

import dataclasses
import functools
import os
import pickle

import numpy as np

from .labelled_images import LabelledImages, register_labelled_images
from .paths import dataset_root

PIXELS = 3 * 32 * 32
# Parts of the training images, whose order is random
TUNING_SPLITS = {"train45k": slice(None, 45_000), "val5k": slice(45_000, None)}
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclasses.dataclass(frozen=True)
class Cifar:
    """What the two data sets differ in.

    Args:
        name (str): in Detectron2's catalogs, before ``_train`` and ``_test``.
        classes (tuple[str]): names in the order of the labels.
        folders (dict): "binary" and "python" -> folder of that version.
        files (dict): "train" and "test" -> names of the files without ``.bin``.
        images_per_file (dict): "train" and "test" -> how many images each file holds.
        label_bytes (int): before the pixels of each image in the binary version; the last one counts.
        label_key (str): where the labels are in the python version.
    """

    name: str
    classes: tuple
    folders: dict
    files: dict
    images_per_file: dict
    label_bytes: int
    label_key: str


CIFAR10 = Cifar(
    name="cifar10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    folders={"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"},
    files={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    images_per_file={"train": 10_000, "test": 10_000},
    label_bytes=1,
    label_key="labels",
)
CIFAR100 = Cifar(
    name="cifar100",
    classes=tuple(CIFAR100_CLASSES.split()),
    folders={"binary": "cifar-100-binary", "python": "cifar-100-python"},
    files={"train": ("train",), "test": ("test",)},
    images_per_file={"train": 50_000, "test": 10_000},
    label_bytes=2,
    label_key="fine_labels",
)


def load_cifar(dataset, split, root=None):
    """Read one half of CIFAR-10 or CIFAR-100.

    Args:
        dataset (Cifar): CIFAR10 or CIFAR100.
        split (str): "train", "test", "train45k" or "val5k".
        root (str or Path, optional): folder that holds the unpacked archive; default: the data set root.

    Returns:
        LabelledImages: (N, 3, 32, 32) and (N,).

    Raises:
        FileNotFoundError: neither version is there, or one of its files is missing.
        ValueError: a file is of the wrong size, no such pickle as CIFAR's, or holds a label out of range.
    """
    if split in TUNING_SPLITS:
        whole = load_cifar(dataset, "train", root)
        return LabelledImages(whole.images[TUNING_SPLITS[split]], whole.labels[TUNING_SPLITS[split]])
    root = dataset_root() if root is None else root
    folders = {version: os.path.join(root, name) for version, name in dataset.folders.items()}
    version = next((version for version, folder in folders.items() if os.path.isdir(folder)), None)
    if version is None:
        source = "from" if "DETECTRON2_DATASETS" in os.environ else "by default, without"
        raise FileNotFoundError(
            f"{dataset.name}: neither {' nor '.join(dataset.folders.values())} is in "
            f"{os.path.abspath(root)} ({source} DETECTRON2_DATASETS). Let DETECTRON2_DATASETS=FOLDER name "
            f"the folder that holds it, or get it: python tools/prepare_cifar.py {dataset.name}"
        )
    folder = folders[version]
    read, suffix = (_read_binary, ".bin") if version == "binary" else (_read_python, "")
    paths = [os.path.join(folder, name + suffix) for name in dataset.files[split]]
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{dataset.name}: {os.path.abspath(path)} is missing. {_advice(dataset, folder)}"
            )
    images, labels = zip(*(_checked(read, path, dataset, split) for path in paths), strict=True)
    return LabelledImages(np.concatenate(images), np.concatenate(labels))


def _advice(dataset, folder):
    return f"Remove the folder {os.path.abspath(folder)} and run python tools/prepare_cifar.py {dataset.name}"


def _checked(read, path, dataset, split):
    try:
        pixels, labels = read(path, dataset, dataset.images_per_file[split])
        outside = np.flatnonzero((labels < 0) | (labels >= len(dataset.classes)))
        if len(outside):
            raise ValueError(
                f"image {outside[0]} has the label {labels[outside[0]]}, but there are "
                f"{len(dataset.classes)} classes (0 to {len(dataset.classes) - 1})"
            )
    except ValueError as error:
        raise ValueError(f"{path}: {error}. {_advice(dataset, os.path.dirname(path))}") from error
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _read_binary(path, dataset, count):
    """Records of label bytes, then the red, green and blue plane of 32 rows of 32 pixels each."""
    record = dataset.label_bytes + PIXELS
    size = os.path.getsize(path)
    if size != count * record:
        raise ValueError(f"it has {size:,} bytes instead of {count * record:,} ({count:,} images)")
    records = np.fromfile(path, np.uint8).reshape(count, record)
    return records[:, dataset.label_bytes :], records[:, dataset.label_bytes - 1].astype(int)


def _read_python(path, dataset, count):
    """A pickled dict with ``data``, (N, 3072) in the order of the binary version, and a list of labels."""
    with open(path, "rb") as file:
        # What Python 2 wrote as str, keys and the bytes of the array alike, is text in Latin-1.
        content = ArrayUnpickler(file, encoding="latin1").load_or_raise()
    data, labels = (
        content.get(key) if isinstance(content, dict) else None for key in ("data", dataset.label_key)
    )
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (count, PIXELS):
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"its 'data' must be a uint8 array ({count}, {PIXELS}), got {got}")
    if not isinstance(labels, list) or len(labels) != count or {type(label) for label in labels} != {int}:
        got = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"its {dataset.label_key!r} must be a list of {count} integers, got {got}")
    return data, np.array(labels)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, lists, strings, numbers and dicts, and refuses everything else.

    A pickle may name any callable of any module to be called while it is read; this one finds three.
    """

    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no part of an array, list, string, number or dict"
            )
        return self._ALLOWED[module, name]

    def load_or_raise(self):
        """The content.

        Raises:
            ValueError: it holds something else, or is no pickle.
        """
        try:
            return self.load()
        except Exception as error:  # damaged pickles raise nearly everything
            raise ValueError(f"it cannot be unpickled safely ({error})") from error


for _dataset in (CIFAR10, CIFAR100):
    for _split in ("train", "test", *TUNING_SPLITS):
        register_labelled_images(
            f"{_dataset.name}_{_split}", functools.partial(load_cifar, _dataset, _split), _dataset.classes
        )
