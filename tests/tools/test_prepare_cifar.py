"""The command over iso_d2.data.cifar.archives, with a small archive in place of the official one."""

import hashlib
import tarfile

import pytest

from iso_d2.data.cifar.archives import ARCHIVES


@pytest.fixture
def tool(load_tool):
    return load_tool("prepare_cifar")


def test_an_archive_at_hand_is_unpacked_and_its_folder_printed(tool, tmp_path, capsys, monkeypatch):
    (tmp_path / "test.bin").write_bytes(b"images")
    archive = tmp_path / "at hand.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "test.bin", "cifar-100-binary/test.bin")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(ARCHIVES, ("cifar100", "binary"), (archive.name, md5))
    tool.main(["cifar100", "--output", str(tmp_path / "root"), "--archive", str(archive)])
    folder = tmp_path / "root" / "cifar-100-binary"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"test.bin": b"images"}


def test_the_data_set_root_is_the_default(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    tool.main(["cifar10", "--version", "python"])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "cifar-10-batches-py")


def test_errors_end_with_a_message(tool, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: archive .*nowhere does not exist"):
        tool.main(["cifar10", "--output", str(tmp_path / "other"), "--archive", "nowhere"])
    (tmp_path / "other.tar.gz").write_bytes(b"no archive")
    with pytest.raises(
        SystemExit, match=r"^error: .*other.tar.gz is not the official cifar-10-binary.tar.gz"
    ):
        tool.main(
            ["cifar10", "--output", str(tmp_path / "other"), "--archive", str(tmp_path / "other.tar.gz")]
        )


def test_an_interruption_says_how_to_continue(tool, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "prepare_cifar", interrupted)
    with pytest.raises(SystemExit, match=r"^interrupted\. To continue: python .* cifar10 --version python$"):
        tool.main(["cifar10", "--version", "python"])
