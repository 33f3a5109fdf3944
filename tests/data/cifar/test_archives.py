"""Archives from a local server, small and made here."""

import hashlib
import io
import tarfile

import pytest
from cifar_files import COUNT, SMALL100, write_binary, write_python
from image_server import serving

from iso_d2.data.cifar import archives, load_cifar
from iso_d2.data.cifar.archives import ARCHIVES, prepare_cifar, unpack

NAME = "cifar-100-binary.tar.gz"
QUICK = {"timeout": 5, "pause": 0.01}


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """An archive of a small CIFAR-100 in the binary version, taken for the official one: its path."""
    return pack(tmp_path / "packed", "binary", monkeypatch)


def pack(folder, version, monkeypatch):
    write = {"binary": write_binary, "python": write_python}[version]
    write(folder / f"cifar-100-{version}", "cifar100")
    path = folder / f"cifar-100-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder / f"cifar-100-{version}", f"cifar-100-{version}")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(ARCHIVES, ("cifar100", version), (path.name, md5))
    return path


@pytest.fixture
def server(packed, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        server.files[NAME] = packed.read_bytes()
        monkeypatch.setattr(archives, "URL", server.url(""))
        yield server


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_verify_unpack(server, tmp_path):
    folder = prepare_cifar("cifar100", root=tmp_path / "root", **QUICK)
    assert folder == tmp_path / "root" / "cifar-100-binary"
    assert files(tmp_path / "root") == ["cifar-100-binary"]
    assert len(load_cifar(SMALL100, "train", tmp_path / "root").labels) == COUNT["train"]
    prepare_cifar("cifar100", root=tmp_path / "root", **QUICK)
    assert server.requests == [(NAME, None)]


def test_an_interrupted_download_continues(server, tmp_path, packed):
    server.faults[NAME] = ["truncate"]
    with pytest.raises(
        OSError, match=r"could not be downloaded \(the connection ended after .*--archive FILE"
    ):
        prepare_cifar("cifar100", root=tmp_path / "root", attempts=1, **QUICK)
    assert files(tmp_path / "root") == [f"{NAME}.part"]
    prepare_cifar("cifar100", root=tmp_path / "root", **QUICK)
    assert server.requests[1:] == [(NAME, f"bytes={packed.stat().st_size // 2}-")]
    assert files(tmp_path / "root") == ["cifar-100-binary"]


def test_a_whole_part_is_not_downloaded_again(server, tmp_path, packed):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / f"{NAME}.part").write_bytes(packed.read_bytes())
    prepare_cifar("cifar100", root=tmp_path / "root", **QUICK)
    assert server.requests == []


def test_progress_counts_all_bytes(server, tmp_path, packed, monkeypatch):
    bars = []

    class Bar(archives.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append(self)

    monkeypatch.setattr(archives, "tqdm", Bar)
    server.faults[NAME] = ["truncate", "ignore range", "truncate"]
    prepare_cifar("cifar100", root=tmp_path / "root", **QUICK)
    assert [(bar.n, bar.total) for bar in bars] == [(packed.stat().st_size,) * 2]


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.files[NAME] = b"<html>Please log in</html>"
    digest = hashlib.md5(server.files[NAME]).hexdigest()
    with pytest.raises(OSError, match=f"its MD5 checksum is {digest} instead of"):
        prepare_cifar("cifar100", root=tmp_path / "root", attempts=2, **QUICK)
    assert files(tmp_path / "root") == []


@pytest.mark.parametrize("version", ["binary", "python"])
def test_an_archive_at_hand(tmp_path, monkeypatch, version):
    archive = pack(tmp_path / "at hand", version, monkeypatch)
    folder = prepare_cifar("cifar100", version, tmp_path / "root", archive)
    assert folder.name == f"cifar-100-{version}" and archive.is_file()
    assert len(load_cifar(SMALL100, "test", tmp_path / "root").labels) == COUNT["test"]


def test_another_archive_at_hand_is_refused(tmp_path, packed):
    with pytest.raises(ValueError, match=r"is not the official cifar-10-binary\.tar\.gz: its MD5 checksum"):
        prepare_cifar("cifar10", root=tmp_path / "root", archive=packed)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        prepare_cifar("cifar10", root=tmp_path / "root", archive=tmp_path / "nowhere")
    assert files(tmp_path / "root") == []


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return info


def test_only_plain_files_leave_an_archive_and_only_into_the_folder(tmp_path):
    """Whatever else is in it; prepare_cifar has compared its checksum before."""
    target = tmp_path / "a" / "b" / "target"
    target.mkdir(parents=True)
    members = [
        member("set", tarfile.DIRTYPE),
        member("set/good"),
        member("set/../../evil"),
        member("/etc/evil2"),
        member("set/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("set/link2", tarfile.LNKTYPE, "../evil"),
        member("set/pipe", tarfile.FIFOTYPE),
        member("set/device", tarfile.CHRTYPE),
    ]
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    unpack(tmp_path / "set.tar", target)
    assert files(target) == ["evil", "evil2", "good"]
    assert all(path.read_bytes() == b"x" for path in target.iterdir())
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a", "b", "evil", "evil2", "good", "set.tar", "target"
    ]  # fmt: skip
