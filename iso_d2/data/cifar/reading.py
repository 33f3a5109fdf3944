"""The files of CIFAR-10 and CIFAR-100: which there are, and how they are read."""

import dataclasses
from pathlib import Path

import numpy as np
import torchvision
from torchvision.datasets.utils import calculate_md5

from ..arrays import LabelledImages
from ..catalog import dataset_root, root_origin

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
    """What the two data sets differ in."""

    name: str  # in Detectron2's catalogs, before _train and _test
    classes: tuple  # names in the order of the labels
    folders: dict  # "binary" and "python" -> folder of that version
    label_bytes: int  # before the pixels of each image in the binary version; the last one counts
    official: type  # torchvision's class, which knows the files and reads the python version
    sizes: dict = dataclasses.field(default_factory=lambda: {"train": 50_000, "test": 10_000})  # images


CIFAR10 = Cifar(
    name="cifar10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    folders={"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"},
    label_bytes=1,
    official=torchvision.datasets.CIFAR10,
)
CIFAR100 = Cifar(
    name="cifar100",
    classes=tuple(CIFAR100_CLASSES.split()),
    folders={"binary": "cifar-100-binary", "python": "cifar-100-python"},
    label_bytes=2,
    official=torchvision.datasets.CIFAR100,
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
        FileNotFoundError: neither version is there, or a file of the binary version is missing.
        ValueError: a file of the binary version has the wrong size or a label out of range, or one of the
            python version is missing or not the official one. Each of these errors names the file.
    """
    if split in TUNING_SPLITS:
        whole = load_cifar(dataset, "train", root)
        return LabelledImages(whole.images[TUNING_SPLITS[split]], whole.labels[TUNING_SPLITS[split]])
    root = dataset_root() if root is None else Path(root)
    version = next((version for version, name in dataset.folders.items() if (root / name).is_dir()), None)
    if version is None:
        raise FileNotFoundError(
            f"{dataset.name}: neither {' nor '.join(dataset.folders.values())} is in {root.absolute()} "
            f"{root_origin()}. Let DETECTRON2_DATASETS=FOLDER name the folder that holds it, or get it: "
            f"python tools/prepare_cifar.py {dataset.name}"
        )
    folder = (root / dataset.folders[version]).absolute()
    advice = f"Remove the folder {folder} and run python tools/prepare_cifar.py {dataset.name}"
    if version == "python":
        try:  # It compares each file with its MD5 checksum before it unpickles it.
            official = dataset.official(root, train=split == "train")
        except RuntimeError as error:
            raise ValueError(f"{_not_official(dataset.official, folder)}. {advice}") from error
        images = np.ascontiguousarray(official.data.transpose(0, 3, 1, 2))  # (N, H, W, 3) -> (N, 3, H, W)
        return LabelledImages(images, np.array(official.targets, np.int64))
    paths = [folder / f"{name}.bin" for name, _ in getattr(dataset.official, f"{split}_list")]
    parts = [_read_binary(path, dataset, dataset.sizes[split] // len(paths), advice) for path in paths]
    images, labels = map(np.concatenate, zip(*parts, strict=True))
    return LabelledImages(images, labels)


def _not_official(official, folder):
    """Which file of the python version torchvision refused, and why."""
    meta = official.meta["filename"], official.meta["md5"]
    for name, md5 in (*official.train_list, *official.test_list, meta):
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        found = calculate_md5(path)
        if found != md5:
            return f"{path} is not the official file: its MD5 checksum is {found} instead of {md5}"
    return f"torchvision cannot read the files in {folder}"


def _read_binary(path, dataset, count, advice):
    """Records of label bytes, then the red, green and blue plane of 32 rows of 32 pixels each."""
    if not path.is_file():
        raise FileNotFoundError(f"{dataset.name}: {path} is missing. {advice}")
    pixels, record = 3 * 32 * 32, dataset.label_bytes + 3 * 32 * 32
    size, expected = path.stat().st_size, count * record
    if size != expected:
        raise ValueError(
            f"{path}: it has {size:,} bytes instead of {expected:,} ({count:,} images). {advice}"
        )
    records = np.fromfile(path, np.uint8).reshape(count, record)
    labels = records[:, dataset.label_bytes - 1].astype(np.int64)
    if labels.max() >= len(dataset.classes):
        raise ValueError(
            f"{path}: image {labels.argmax()} has the label {labels.max()}, but there are "
            f"{len(dataset.classes)} classes (0 to {len(dataset.classes) - 1}). {advice}"
        )
    return records[:, -pixels:].reshape(-1, 3, 32, 32), labels
