import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from iso_d2.files import (
    BrokenImageError,
    make_once,
    read_image,
    read_label_image,
    replacing,
    write_atomically,
)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, "first")
    with pytest.raises(KeyboardInterrupt), replacing(path) as unfinished:
        unfinished.write_text("half")
        assert path.read_text() == "first"
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    write_atomically(path, "second")
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_folder_is_made_once(tmp_path):
    fills = []

    def fill(folder):
        fills.append(folder)
        (folder / "a").write_text("1")

    for _ in range(2):
        assert make_once(tmp_path / "set", fill) == tmp_path / "set"
    assert len(fills) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_failed_fill_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "set", fill)
    assert list(tmp_path.iterdir()) == []


def _fill_slowly(folder):
    for name in "abcdef":
        (folder / name).write_text(str(os.getpid()))
        time.sleep(0.05)


def test_a_killed_fill_leaves_no_folder_of_that_name(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=make_once, args=(tmp_path / "set", _fill_slowly)
    )
    process.start()
    while not list(tmp_path.glob("*/a")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "set").exists()
    make_once(tmp_path / "set", _fill_slowly)
    assert len(list((tmp_path / "set").iterdir())) == 6


def test_two_processes_at_once_make_one_whole_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=make_once, args=(tmp_path / "set", _fill_slowly)) for _ in range(2)]
    for process in processes:
        process.start()
    while not (tmp_path / "set").exists():
        time.sleep(0.005)
    seen_at_once = len(list((tmp_path / "set").iterdir()))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert seen_at_once == 6
    assert len({path.read_text() for path in (tmp_path / "set").iterdir()}) == 1, "files of both processes"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def png_with_a_flipped_byte(path, at):
    """A PNG of noise with one damaged byte in its pixel data."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("at", range(300, 4700, 400))
def test_a_flipped_byte_in_a_png_is_no_black_image(tmp_path, at):
    png_with_a_flipped_byte(tmp_path / "a.png", at)
    with pytest.raises(BrokenImageError, match=r"cannot read the image .*a\.png"):
        read_image(tmp_path / "a.png", "RGB")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_to_8(tmp_path, suffix):
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}", "L")[:, :, 0]
    assert np.abs(found - ramp * (255 / 65535)).max() <= 0.5
    assert found.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused(tmp_path, dtype):
    values = np.full((4, 4), 7, dtype=dtype)
    values[0, 0] = np.nan if dtype == np.float32 else 10**6
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImageError, match="32 bits and an unknown range: convert"):
        read_image(tmp_path / "a.tif", "RGB")


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BrokenImageError, match="no such file"):
        read_image(tmp_path / "a.png", "RGB")


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png", "L")[:, :, 0], np.rot90(pixels, -1))


def test_labels_of_16_bits_are_not_scaled(tmp_path):
    labels = np.array([[0, 3], [200, 255]], dtype=np.uint16)
    Image.fromarray(labels).save(tmp_path / "a.png")
    assert np.array_equal(read_label_image(tmp_path / "a.png"), labels)
    Image.fromarray(labels + np.uint16(1)).save(tmp_path / "b.png")
    with pytest.raises(BrokenImageError, match="labels go up to 256"):
        read_label_image(tmp_path / "b.png")
