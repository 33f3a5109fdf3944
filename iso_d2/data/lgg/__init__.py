"""Brain MRI slices of low-grade gliomas with tumour masks (Buda et al., Comput. Biol. Med. 109, 2019).

3,929 slices of 110 patients, 1,373 of them with tumour; three sequences (pre-contrast, FLAIR, post-contrast)
as the channels of an RGB image. They lie in the data set root as the archive from Kaggle unpacks:
``lgg-mri-segmentation/kaggle_3m/<patient>/<patient>_<slice>.tif``, each with its ``..._<slice>_mask.tif``.

    lgg_train, lgg_val                     preprocessed arrays, for UNetSegmentor; see arrays.py
    lgg_sem_seg_train, lgg_sem_seg_val     the same slices as PNG files, for Detectron2's SemanticSegmentor

These are split by patient; ``lgg`` holds all. Other splits are named after ``lgg`` or ``lgg_sem_seg``:
lgg_image_train, lgg_tune_val, lgg_sem_seg_fold0of5_val; patients.py says what they are. DATASETS.LGG_SPLIT in
a config renames the sets whose names say no split (``named_by_split``) when the config is loaded.

Patients may be missing, slices of a patient not. All slices are preprocessed once into the cache, under a
name that depends on the settings and on the names, sizes and times of the files.
"""

import dataclasses
import functools
import logging
import os
import re

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import log_first_n
from PIL import Image

from ..arrays import SEGMENTATION, SegmentedImages, register_segmented_images
from ..catalog import cached, dataset_root, register, root_origin, short_hash
from .patients import PATIENTS, choose_slices, split_name
from .preprocessing import Preprocessing
from .slices import in_threads, list_patient, preprocess_slices, raise_problems

SOURCE = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"
PREPROCESSING = Preprocessing()

logger = logging.getLogger(__name__)


def register_split(split):
    """Register the four data sets of a split, unless they are there already.

    Args:
        split (str): "patient", "image", "tune", or such as "fold0of22"; see patients.py.
    """
    for side in ("train", "val"):
        name, choose = _with_split(f"lgg_{side}", split), functools.partial(_choose, side, split)
        if name not in DatasetCatalog:
            register_segmented_images(name, load_lgg, choose, PREPROCESSING.size, PATIENTS)
            register(
                _with_split(f"lgg_sem_seg_{side}", split),
                functools.partial(_load_sem_seg, choose),
                evaluator_type="sem_seg",
                image_size=PREPROCESSING.size,
                **SEGMENTATION,
            )


def named_by_split(names, split="patient", fold=0, folds=5):
    """Put a split into the names of LGG data sets that say none: lgg_train with "image" is lgg_image_train.

    The data sets of a config are named so when it is loaded. Only folds that are not registered yet get
    registered on the way; no data set ever changes its content.

    Args:
        names (sequence[str]): of any data sets. Those that say this split, and other data, stay as they are,
            and with "patient" those that say any.
        split (str): DATASETS.LGG_SPLIT: "patient", "image", "tune" or "fold".
        fold, folds (int): DATASETS.LGG_FOLD and LGG_FOLDS: the part to validate on, from 0, of how many.

    Returns:
        tuple[str]

    Raises:
        ValueError: there is no such split or fold, or a name says another split than the one asked for.
    """
    split = split_name(split, fold, folds)
    names = tuple(_with_split(name, split) for name in names)
    for name in names:
        said = re.fullmatch(r"lgg_(?:sem_seg_)?(image|tune|fold(\d+)of(\d+))_(?:train|val)", name)
        if said and said[2]:
            register_split(split_name("fold", int(said[2]), int(said[3])))
        if said and split not in ("patient", said[1]):
            raise ValueError(
                f"DATASETS asks for the LGG split {split}, but names {name}. Leave DATASETS.LGG_SPLIT out or "
                f"give names without a split, such as {name.replace(f'_{said[1]}', '')}."
            )
    return names


def without_split(names, split="patient", fold=0, folds=5):
    """tuple[str]: what ``named_by_split`` was given, so that another split can be put into the names."""
    said = f"_fold{fold}of{folds}_" if split == "fold" else f"_{split}_"
    return tuple(name.replace(said, "_") if name.startswith("lgg_") else name for name in names)


def _with_split(name, split):
    return name if split == "patient" else re.sub(r"^(lgg|lgg_sem_seg)_(train|val)$", rf"\1_{split}_\2", name)


def _choose(side, split, records):
    return choose_slices(side, split, PATIENTS, records)


def load_lgg():
    """SegmentedImages: all slices that are there, by patient and number; preprocessed on first use.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: its files are not as they should be, or the cache is damaged.
    """
    return _load()[0]


def _load():
    """The slices, and the key of everything that depends on these files and settings."""
    root = (dataset_root() / "lgg-mri-segmentation" / "kaggle_3m").absolute()
    if not root.is_dir():
        raise FileNotFoundError(
            f"lgg: there is no folder {root} {root_origin()}. Let DETECTRON2_DATASETS=FOLDER "
            f"name the folder that holds lgg-mri-segmentation/kaggle_3m, or get it: {SOURCE}"
        )
    slices = list_slices(root, PATIENTS)
    key = _cache_key(root, slices)
    folder = cached(f"lgg-{key}", lambda new: preprocess_slices("lgg", root, slices, PREPROCESSING).save(new))
    return SegmentedImages.load(folder, root), key


def list_slices(root, patients):
    """list[Slice]: those in the folder ``kaggle_3m``, ordered by patient and slice.

    Raises:
        FileNotFoundError: there are no patients.
        ValueError: a folder is of no patient; slices or masks are missing, or there are too many.
    """
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise FileNotFoundError(f"lgg: {root} holds no folders of patients. Get the data set: {SOURCE}")
    slices, problems = [], []
    for name in names:
        if name not in patients:
            problems.append(f"{name} is none of the {len(patients)} patients")
            continue
        found, wrong = list_patient(root, name, patients[name].slices)
        slices += found
        problems += wrong
    raise_problems("lgg", root, problems)
    if len(names) < len(patients):
        message = f"lgg: {len(names)} of the {len(patients)} patients are in {root}"
        log_first_n(logging.WARNING, message, key="message", name=__name__)
    return slices


def _cache_key(root, slices):
    """12 hexadecimal digits that change with the settings and with any file."""
    files = [name for piece in slices for name in (piece.image, piece.mask)]
    states = [(name, (status := os.stat(root / name)).st_size, status.st_mtime_ns) for name in files]
    return short_hash([dataclasses.astuple(PREPROCESSING), states])


def _load_sem_seg(choose):
    whole, key = _load()
    folder = cached(f"lgg_sem_seg-{key}", functools.partial(_write_png, whole))
    return [
        {
            "file_name": str(folder / "images" / f"{image_id}.png"),
            "sem_seg_file_name": str(folder / "labels" / f"{image_id}.png"),
            "image_id": image_id,
            "height": PREPROCESSING.size,
            "width": PREPROCESSING.size,
        }
        for image_id in (whole.records[index]["image_id"] for index in choose(whole.records))
    ]


def _write_png(whole, folder):
    """Write ``images/<image_id>.png`` and ``labels/<image_id>.png``, which holds 0 and 1."""
    for name in ("images", "labels"):
        (folder / name).mkdir()

    def write(index):
        name = f"{whole.records[index]['image_id']}.png"
        image = Image.fromarray(whole.images[index].transpose(1, 2, 0).copy())  # (3, H, W) -> (H, W, 3)
        image.save(folder / "images" / name, compress_level=1)
        Image.fromarray(whole.labels[index]).save(folder / "labels" / name)

    in_threads("writing lgg_sem_seg", write, range(len(whole.records)))


def _all(records):
    return list(range(len(records)))


register_segmented_images("lgg", load_lgg, _all, PREPROCESSING.size, PATIENTS)
for _split in ("patient", "image", "tune", *(f"fold{_fold}of5" for _fold in range(5))):
    register_split(_split)
