import multiprocessing
import os
import signal
import time

import pytest

from iso_d2.files import make_once, replacing, write_atomically


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
