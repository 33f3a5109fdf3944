"""The official archives of CIFAR-10 and CIFAR-100: download, verify, unpack."""

import http.client
import logging
import tarfile
from pathlib import Path

from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from ...files import make_once
from ..catalog import dataset_root
from ..download import download
from .reading import CIFAR10, CIFAR100

URL = "https://www.cs.toronto.edu/~kriz/"
SETS = {dataset.name: dataset for dataset in (CIFAR10, CIFAR100)}
# (data set, version) -> archive and the MD5 checksum that its page gives
ARCHIVES = {
    ("cifar10", "binary"): ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    ("cifar10", "python"): ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    ("cifar100", "binary"): ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    ("cifar100", "python"): ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
}

logger = logging.getLogger(__name__)


def prepare_cifar(name, version="binary", root=None, archive=None, **options):
    """Put CIFAR-10 or CIFAR-100 where the registered data sets look for it.

    A folder that is there already stays as it is. An interrupted download leaves ``<archive>.part``, which
    the next call continues.

    Args:
        name (str): "cifar10" or "cifar100".
        version (str): "binary" or "python".
        root (str or Path, optional): default: the data set root; made if needed.
        archive (str or Path, optional): the official archive; then nothing is downloaded.
        options: of :func:`iso_d2.data.download.download`.

    Returns:
        Path: the folder of the data set.

    Raises:
        FileNotFoundError: ``archive`` does not exist.
        ValueError: ``archive`` is not the official one, by its checksum.
        OSError: the download failed.
    """
    root = dataset_root() if root is None else Path(root)
    file_name, md5 = ARCHIVES[name, version]
    folder = root / SETS[name].folders[version]
    if folder.is_dir():
        logger.info("%s is there already: nothing to do", folder)
        return folder
    root.mkdir(parents=True, exist_ok=True)
    source = root / f"{file_name}.part" if archive is None else Path(archive)
    if archive is None:
        if not source.is_file() or _fault(source, md5):
            _download(URL + file_name, source, md5, options)
    elif not source.is_file():
        raise FileNotFoundError(f"archive {source.absolute()} does not exist")
    elif fault := _fault(source, md5):
        raise ValueError(f"{source} is not the official {file_name}: {fault}")
    make_once(folder, lambda unfinished: unpack(source, unfinished))
    if archive is None:
        source.unlink()
    return folder


def _download(url, part, md5, options):
    with tqdm(desc=part.stem, unit="B", unit_scale=True) as bar:

        def show(done, total):
            bar.total = total
            bar.update(done - bar.n)

        try:
            download(url, part, lambda path: _fault(path, md5), progress=show, **options)
        except (OSError, http.client.HTTPException) as error:
            raise OSError(
                f"{url} could not be downloaded ({error}). Try again: what is there is kept. Or fetch it by "
                "other means and name the file (--archive FILE)."
            ) from error


def _fault(path, md5):
    found = calculate_md5(path)
    return None if found == md5 else f"its MD5 checksum is {found} instead of {md5}"


def unpack(archive, folder):
    """Put the plain files of an archive right into a folder (Path), whatever folders they are in there."""
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isreg, tar):
            (folder / Path(member.name).name).write_bytes(tar.extractfile(member).read())
