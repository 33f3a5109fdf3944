"""Where data sets lie, and how generated files get there: whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path


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


def make_once(folder, fill):
    """Make a folder by ``fill`` if it does not exist, so that nobody ever sees it half full.

    It is filled under another name and then renamed. Of several processes that do so at once one wins,
    the others take its folder.

    Args:
        folder (Path): the folder wanted; its parent exists.
        fill (callable): called with the path of an empty folder.

    Returns:
        Path: ``folder``.
    """
    if folder.is_dir():
        return folder
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".unfinished", dir=folder.parent))
    try:
        fill(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
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
        handle, unfinished = tempfile.mkstemp(prefix=f"{stem}.", suffix=".unfinished", dir=target.parent)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(unfinished, target)
    return target
