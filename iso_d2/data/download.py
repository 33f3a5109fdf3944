"""Files by download, images by download or copy: each arrives whole and checked, or not at all."""

import functools
import http.client
import os
import shutil
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from PIL import Image
from tqdm import tqdm

# Then the network or the server is down, and trying the remaining thousands would take hours.
MAX_FAILURES_IN_A_ROW = 20
# HTTP errors of the 400s that may pass: time-out, a stale part (which is dropped), too many requests
_PASSING = (408, 416, 429)


def obtain_images(images, folder, source=None, threads=8, **options):
    """Download the images that a folder does not hold yet, or copy them from another folder.

    Whole images are kept. An interrupted download leaves ``<name>.part``, which the next call continues.

    Args:
        images (list[dict]): entries of a COCO file: ``file_name``, ``width`` and ``height`` in pixels and,
            unless there is a ``source``, ``coco_url``.
        folder (str or Path): where they go; made if needed.
        source (str or Path, optional): folder to copy from; then nothing is downloaded.
        threads (int): how many images at a time.
        options: timeout, attempts and pause of ``download``.

    Returns:
        dict[str, str]: name of each image that could not be had -> why. After MAX_FAILURES_IN_A_ROW it
        gives up; the images not tried are in it too.

    Raises:
        ValueError: a file name is no plain name or occurs twice, or a ``coco_url`` is missing or not HTTP.
    """
    folder = Path(folder)
    names = _check_entries(images, needs_url=source is None)
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()

    def bring(image):
        """Put an image in its place unless it is there, whole and of the stated size."""
        find_fault = functools.partial(_fault, image)
        target, part = folder / image["file_name"], folder / f"{image['file_name']}.part"
        if find_fault(target) is None:
            return
        if source is None:
            download(image["coco_url"], part, find_fault, stop=stop, **options)
        else:
            shutil.copyfile(Path(source) / image["file_name"], part)
            _reject_if_faulty(part, find_fault)
        os.replace(part, target)

    failures = dict.fromkeys(names, "not tried")
    failed_in_a_row = 0
    pool = ThreadPoolExecutor(threads)
    futures = {pool.submit(bring, image): image["file_name"] for image in images}
    try:
        for future in tqdm(as_completed(futures), total=len(futures), unit="image", desc=folder.name):
            try:
                future.result()
            except (OSError, http.client.HTTPException) as error:
                failures[futures[future]] = str(error) or type(error).__name__
                failed_in_a_row += 1
                if failed_in_a_row == MAX_FAILURES_IN_A_ROW:
                    break
            else:
                del failures[futures[future]]
                failed_in_a_row = 0
    finally:
        # Also after Ctrl-C: without this the pool would first work through its whole queue.
        stop.set()
        pool.shutdown(cancel_futures=True)
    return failures


def _check_entries(images, needs_url):
    names = [image["file_name"] for image in images]
    for image in images:
        name, url = image["file_name"], image.get("coco_url")
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"file_name {name!r} must be a plain name, not a path: mend the annotation file")
        if needs_url and not str(url).startswith(("http://", "https://")):
            raise ValueError(
                f"image {name} has coco_url {url!r}, but an http(s) address is needed to download it. "
                "Take the official annotation file, or name a folder that has the images."
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two images have the file_name {twice!r}: mend the annotation file")
    return names


def _fault(image, path):
    """What is wrong with an image file, as text; None if it is whole and of the stated size."""
    try:
        with Image.open(path) as opened:
            opened.load()
            size = opened.size
    except Exception as error:  # Pillow's plugins raise many kinds on broken files
        return f"not a readable image ({error})"
    if size != (image["width"], image["height"]):
        return f"{size[0]}x{size[1]} pixels instead of {image['width']}x{image['height']}"
    return None


def _reject_if_faulty(part, find_fault):
    fault = find_fault(part)
    if fault is not None:
        part.unlink(missing_ok=True)
        raise OSError(fault)


def download(url, part, find_fault, timeout=30.0, attempts=5, pause=1.0, stop=None, progress=None):
    """Download a file, or continue what an earlier download left of it.

    Args:
        url (str): http(s) address.
        part (Path): where it goes, and where an unfinished one stays.
        find_fault (callable): gets ``part`` once it is whole; returns what is wrong with it as text, or None.
            A faulty file is removed and tried again.
        timeout (float): seconds without a sign of the server after which an attempt ends.
        attempts (int): tries.
        pause (float): seconds before the second try, doubled before each further one.
        stop (threading.Event, optional): once set, there is no further try.
        progress (callable, optional): called with the bytes of the file that are there and the bytes that it
            has in all, or None where the server does not say.

    Raises:
        OSError, http.client.HTTPException: the last try failed.
    """
    stop = stop or threading.Event()
    for attempt in range(1, attempts + 1):
        try:
            _fetch(url, part, timeout, progress)
            _reject_if_faulty(part, find_fault)
            return
        except (OSError, http.client.HTTPException) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            if code == 416:
                part.unlink(missing_ok=True)
            hopeless = code is not None and 400 <= code < 500 and code not in _PASSING
            if hopeless or attempt == attempts or stop.wait(pause * 2 ** (attempt - 1)):
                raise


def _fetch(url, part, timeout, progress):
    """Append what is missing of a file to ``part``, or write it anew where the server ignores Range."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        continues = done and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        length = response.headers.get("Content-Length")
        received, before = 0, done if continues else 0
        with part.open("ab" if continues else "wb") as file:
            while block := response.read1(1 << 16):
                received += file.write(block)
                if progress:
                    progress(before + received, None if length is None else before + int(length))
    if length is not None and received != int(length):
        raise OSError(f"the connection ended after {received} of {length} bytes")
