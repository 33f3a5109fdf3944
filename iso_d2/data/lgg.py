"""Brain MRI slices of low-grade gliomas with tumour masks (Buda et al., Comput. Biol. Med. 109, 2019).

3,929 slices of 110 patients, 1,373 of them with tumour; three sequences (pre-contrast, FLAIR, post-contrast)
as the channels of an RGB image. They lie in the data set root as the archive from Kaggle unpacks:
``lgg-mri-segmentation/kaggle_3m/<patient>/<patient>_<slice>.tif``, each with its ``..._<slice>_mask.tif``.

    lgg_train, lgg_val                     preprocessed arrays, for UNetSegmentor; see segmented_images.py
    lgg_sem_seg_train, lgg_sem_seg_val     the same slices as PNG files, for Detectron2's SemanticSegmentor

Patients may be missing, slices of a patient not. All slices are preprocessed once into the cache, under a
name that depends on the settings and on the names, sizes and times of the files. lgg_patients.py has the
splits.
"""

import functools
import hashlib
import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor

from detectron2.utils.logger import log_first_n
from PIL import Image
from tqdm import tqdm

from ..files import make_once
from . import lgg_preprocessing
from .lgg_patients import check_split, choose_slices, read_patients
from .paths import cache_root, dataset_root
from .registration import register
from .segmented_images import CLASSES, SegmentedImages, register_segmented_images
from .slices import Slice, preprocess_slices, raise_problems

SOURCE = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"
# Part of the cache's key: raise it whenever the preprocessing changes, or old caches stay in use.
VERSION = 1
PATIENTS = read_patients()

logger = logging.getLogger(__name__)


def register_lgg(split="patient", fold=0, folds=5):
    """Register lgg_train, lgg_val, lgg_sem_seg_train and lgg_sem_seg_val, in place of those of another split.

    Args:
        split (str): "patient" (no patient on both sides), "image" (85 % and 15 % of all slices), "fold", or
            "tune" (the training patients of "patient" alone, divided once more, to choose settings by).
        fold (int): with "fold", the part that is lgg_val, from 0.
        folds (int): with "fold", the number of parts.

    Raises:
        ValueError: there is no such split or fold.
    """
    check_split(split, fold, folds, PATIENTS)
    for side in ("train", "val"):
        choose = functools.partial(choose_slices, side, split, fold, folds, PATIENTS)
        register_segmented_images(f"lgg_{side}", load_lgg, choose, lgg_preprocessing.SIZE)
        register(
            f"lgg_sem_seg_{side}",
            functools.partial(_load_sem_seg, choose),
            evaluator_type="sem_seg",
            stuff_classes=list(CLASSES),
            ignore_label=255,
            image_size=lgg_preprocessing.SIZE,
        )


def load_lgg():
    """All slices that are there, preprocessed; on first use that is done and takes a while.

    Returns:
        SegmentedImages: ordered by patient and slice.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: its files are not as they should be, or the cache is damaged.
    """
    return _load()[0]


def _load():
    """The slices, and the key of everything that depends on these files and settings."""
    root = _root()
    slices = list_slices(root, PATIENTS)
    key = _cache_key(root, slices)

    def fill(unfinished):
        preprocess_slices("lgg", root, slices, lgg_preprocessing.SIZE).save(unfinished)

    folder = make_once(cache_root() / f"lgg-{key}", fill)
    return SegmentedImages.load(folder, root), key


def _root():
    root = (dataset_root() / "lgg-mri-segmentation" / "kaggle_3m").absolute()
    if not root.is_dir():
        source = "from" if "DETECTRON2_DATASETS" in os.environ else "by default, without"
        raise FileNotFoundError(
            f"lgg: there is no folder {root} ({source} DETECTRON2_DATASETS). Let DETECTRON2_DATASETS=FOLDER "
            f"name the folder that holds lgg-mri-segmentation/kaggle_3m, or get it: {SOURCE}"
        )
    return root


def list_slices(root, patients):
    """Find the slices and their masks. Hidden files, and all that do not end in .tif, do not count.

    Args:
        root (Path): the folder ``kaggle_3m``.
        patients (dict[str, Patient]): all that there are.

    Returns:
        list[Slice]: ordered by patient and slice.

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
        found, wrong = _list_patient(root, name, patients[name].slices)
        slices += found
        problems += wrong
    raise_problems("lgg", root, problems)
    if len(names) < len(patients):
        message = f"lgg: {len(names)} of the {len(patients)} patients are in {root}"
        log_first_n(logging.WARNING, message, key="message", name=__name__)
    return slices


def _list_patient(root, name, count):
    """The slices of a patient in their order, and a list of what is wrong."""
    numbers = {"": set(), "_mask": set()}
    problems = []
    for entry in sorted(os.listdir(root / name)):
        if entry[0] == "." or not entry.endswith(".tif"):
            continue
        match = re.fullmatch(rf"{re.escape(name)}_([1-9]\d*)(|_mask)\.tif", entry)
        if match:
            numbers[match[2]].add(int(match[1]))
        else:
            problems.append(f"{name}/{entry} is not named {name}_<slice>.tif or {name}_<slice>_mask.tif")
    images, masks = numbers[""], numbers["_mask"]
    wanted = set(range(1, count + 1))
    if not images | masks:
        return [], [*problems, f"{name} is empty: it has no .tif files"]
    for found, sentence in (
        (images - masks, "has no mask of"),
        (masks - images, "has masks without images of"),
        (wanted - images - masks, f"lacks, of its {count} slices,"),
        ((images | masks) - wanted, f"has {count} slices, but there are also"),
    ):
        if found:
            problems.append(f"{name} {sentence} slice {', '.join(map(str, sorted(found)))}")
    stems = {number: f"{name}/{name}_{number}" for number in sorted(images & masks)}
    return [Slice(name, n, f"{stem}.tif", f"{stem}_mask.tif") for n, stem in stems.items()], problems


def _cache_key(root, slices):
    """12 hexadecimal digits that change with the settings and with any file."""
    names = ("SIZE", "BACKGROUND", "THRESHOLD", "MEDIAN", "MIN_PIECE")
    content = [VERSION, *(getattr(lgg_preprocessing, name) for name in names)]
    for piece in slices:
        for name in (piece.image, piece.mask):
            status = os.stat(root / name)
            content.append([name, status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _load_sem_seg(choose):
    whole, key = _load()
    folder = make_once(cache_root() / f"lgg_sem_seg-{key}", functools.partial(_write_png, whole))
    size = lgg_preprocessing.SIZE
    chosen = [whole.records[index] for index in choose(whole.records)]
    return [
        {
            "file_name": str(folder / "images" / f"{record['image_id']}.png"),
            "sem_seg_file_name": str(folder / "labels" / f"{record['image_id']}.png"),
            "image_id": record["image_id"],
            "height": size,
            "width": size,
        }
        for record in chosen
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

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        done = pool.map(write, range(len(whole.records)))
        list(tqdm(done, total=len(whole.records), unit="slice", desc="writing lgg_sem_seg"))


register_lgg()
