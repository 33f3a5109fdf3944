"""Where data sets lie, downloaded and generated."""

import hashlib
import json
import os
from pathlib import Path

from ..files import write_atomically


def dataset_root():
    """Folder of the downloaded data sets: $DETECTRON2_DATASETS, else ``datasets``, as in Detectron2.

    It is read at every call, so a variable that is set after the import counts too.

    Returns:
        Path: the folder; it may not exist.
    """
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def cache_root():
    """Folder of everything that iso_d2 generates: $ISO_D2_CACHE, else ``~/.cache/iso_d2``.

    Returns:
        Path: the folder, made if needed.

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


def cache_json(stem, data):
    """Write ``data`` into the cache, under a name that holds a hash of it, unless it is there already.

    Args:
        stem (str): how the file name begins.
        data: anything that json can hold.

    Returns:
        Path: the file.
    """
    text = json.dumps(data)
    target = cache_root() / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not target.exists():
        write_atomically(target, text)
    return target
