"""Data sets by name: in Detectron2's catalogs, and where their files are, downloaded or generated."""

import hashlib
import json
import logging
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..files import make_once, write_atomically

logger = logging.getLogger(__name__)


def register(name, load, evaluator_type="coco", **metadata):
    """Register a data set, in place of an earlier one of that name.

    Args:
        name (str): name in Detectron2's catalogs.
        load (callable): returns the list of dataset dicts.
        evaluator_type (str): which evaluator belongs to it.
        metadata: more fields of its metadata.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(evaluator_type=evaluator_type, **metadata)


def dataset_root():
    """Path: folder of the downloaded data sets: $DETECTRON2_DATASETS, read at every call, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def root_origin():
    """str: where ``dataset_root`` comes from, for messages."""
    source = "from" if "DETECTRON2_DATASETS" in os.environ else "by default, without"
    return f"({source} DETECTRON2_DATASETS)"


def cache_root():
    """Path: folder of everything that iso_d2 generates, $ISO_D2_CACHE or ``~/.cache/iso_d2``; made if needed.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(os.environ.get("ISO_D2_CACHE", "~/.cache/iso_d2")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot make the cache folder {folder} ({error}): set ISO_D2_CACHE to a writable folder"
        ) from error
    return folder


def cached(name, fill):
    """Path: the folder of that name in the cache, filled on first use by ``fill`` (see ``make_once``).

    The name must change whenever the content would.
    """
    folder = cache_root() / name
    if not folder.is_dir():
        logger.info("making %s, on first use", folder)
    return make_once(folder, fill)


def short_hash(content):
    """12 hexadecimal digits of a hash of what json can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def cache_json(stem, data):
    """Path: a file in the cache that holds ``data``, named ``stem`` and a hash of it; written if needed."""
    target = cache_root() / f"{stem}-{short_hash(data)}.json"
    if not target.exists():
        write_atomically(target, json.dumps(data))
    return target
