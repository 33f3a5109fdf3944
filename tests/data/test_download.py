"""Downloads against a local server that stalls, fails, truncates and ignores Range."""

import time

import pytest
from image_server import jpeg, serving

from iso_d2.data import download
from iso_d2.data.download import MAX_FAILURES_IN_A_ROW, obtain_images


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


def publish(server, count):
    """Put images on the server; their entries in a COCO file."""
    entries = []
    for number in range(count):
        name = f"{number}.jpg"
        server.files[name] = jpeg(number)
        entries.append({"file_name": name, "width": 40, "height": 30, "coco_url": server.url(name)})
    return entries


def obtain(entries, folder, **options):
    return obtain_images(entries, folder, **{"timeout": 5, "pause": 0.01, **options})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_images_arrive(server, tmp_path):
    entries = publish(server, 12)
    assert obtain(entries, tmp_path / "coco" / "val2017") == {}
    assert contents(tmp_path / "coco" / "val2017") == server.files


def test_whole_images_are_kept_and_broken_ones_replaced(server, tmp_path):
    entries = publish(server, 3)
    (tmp_path / "0.jpg").write_bytes(server.files["0.jpg"])
    (tmp_path / "1.jpg").write_bytes(server.files["1.jpg"][:1000])
    (tmp_path / "2.jpg").write_bytes(jpeg(2, width=8, height=8))
    assert obtain(entries, tmp_path) == {}
    assert contents(tmp_path) == server.files
    assert sorted(server.requests) == [("1.jpg", None), ("2.jpg", None)]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_errors_are_tried_again(server, tmp_path, status):
    entries = publish(server, 1)
    server.faults["0.jpg"] = [status, status]
    assert obtain(entries, tmp_path) == {}
    assert contents(tmp_path) == server.files
    assert len(server.requests) == 3


def test_the_pause_doubles(server, tmp_path):
    entries = publish(server, 1)
    server.faults["0.jpg"] = [500, 500]
    start = time.monotonic()
    assert obtain(entries, tmp_path, pause=0.2) == {}
    assert 0.6 <= time.monotonic() - start < 5


def test_attempts_are_limited(server, tmp_path):
    entries = publish(server, 2)
    server.faults["1.jpg"] = [503] * 9
    failures = obtain(entries, tmp_path, attempts=4)
    assert list(failures) == ["1.jpg"] and "503" in failures["1.jpg"]
    assert [name for name, _ in server.requests].count("1.jpg") == 4
    assert list(contents(tmp_path)) == ["0.jpg"]


def test_what_is_not_there_is_asked_for_once(server, tmp_path):
    entries = publish(server, 1)
    del server.files["0.jpg"]
    failures = obtain(entries, tmp_path)
    assert "404" in failures["0.jpg"]
    assert len(server.requests) == 1


def test_a_truncated_download_continues_where_it_ended(server, tmp_path):
    entries = publish(server, 1)
    size = len(server.files["0.jpg"])
    server.faults["0.jpg"] = ["truncate"]
    assert obtain(entries, tmp_path) == {}
    assert contents(tmp_path) == server.files
    assert server.requests == [("0.jpg", None), ("0.jpg", f"bytes={size // 2}-")]


@pytest.mark.parametrize("fault", ["ignore range", "wrong range"])
def test_a_server_that_does_not_continue_restarts(server, tmp_path, fault):
    entries = publish(server, 1)
    server.faults["0.jpg"] = ["truncate", fault]
    assert obtain(entries, tmp_path) == {}
    assert contents(tmp_path) == server.files
    assert len(server.requests) == 2


def test_a_stalled_download_times_out_and_continues(server, tmp_path):
    entries = publish(server, 2)
    server.faults["0.jpg"] = ["stall"]
    start = time.monotonic()
    assert obtain(entries, tmp_path, timeout=0.5) == {}
    assert time.monotonic() - start < 5
    assert contents(tmp_path) == server.files
    assert server.requests[-1] == ("0.jpg", f"bytes={len(server.files['0.jpg']) // 2}-")


def test_a_later_call_continues_what_an_earlier_one_left(server, tmp_path):
    entries = publish(server, 1)
    server.faults["0.jpg"] = ["truncate"]
    failures = obtain(entries, tmp_path, attempts=1)
    size = len(server.files["0.jpg"])
    assert failures == {"0.jpg": f"the connection ended after {size // 2} of {size} bytes"}
    assert list(contents(tmp_path)) == ["0.jpg.part"]

    assert obtain(entries, tmp_path) == {}
    assert contents(tmp_path) == server.files
    assert server.requests[-1] == ("0.jpg", f"bytes={size // 2}-")


@pytest.mark.parametrize("stale", [b"x" * 100, b"x" * 100_000], ids=["too short", "too long"])
def test_a_stale_part_is_dropped(server, tmp_path, stale):
    entries = publish(server, 1)
    (tmp_path / "0.jpg.part").write_bytes(stale)
    assert obtain(entries, tmp_path) == {}
    assert contents(tmp_path) == server.files


@pytest.mark.parametrize(
    "served, message",
    [
        (jpeg(7, width=20, height=10), "20x10 pixels instead of 40x30"),
        (jpeg(7)[:-600], "not a readable image"),
        (b"<html>Please log in</html>", "not a readable image"),
    ],
    ids=["other size", "broken", "web page"],
)
def test_what_is_not_the_image_is_rejected(server, tmp_path, served, message):
    entries = publish(server, 1)
    server.files["0.jpg"] = served
    failures = obtain(entries, tmp_path, attempts=2)
    assert message in failures["0.jpg"]
    assert contents(tmp_path) == {}
    assert server.requests == [("0.jpg", None)] * 2


def test_it_gives_up_when_nothing_works(server, tmp_path):
    entries = publish(server, 200)
    server.files.clear()
    failures = obtain(entries, tmp_path, threads=2)
    assert list(failures) == [entry["file_name"] for entry in entries]
    assert "not tried" in failures.values()
    assert MAX_FAILURES_IN_A_ROW <= len(server.requests) < 100


def test_scattered_failures_do_not_make_it_give_up(server, tmp_path):
    entries = publish(server, 3 * MAX_FAILURES_IN_A_ROW)
    lost = [entry["file_name"] for entry in entries[::2]]
    for name in lost:
        del server.files[name]
    failures = obtain(entries, tmp_path)
    assert list(failures) == lost
    assert contents(tmp_path) == server.files


def test_an_interruption_does_not_wait_for_the_queue(server, tmp_path, monkeypatch):
    def interrupted(completed, **options):
        next(completed)
        raise KeyboardInterrupt

    entries = publish(server, 200)
    server.faults["1.jpg"] = [503]
    monkeypatch.setattr(download, "tqdm", interrupted)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        obtain(entries, tmp_path, threads=2, pause=60)
    assert time.monotonic() - start < 20
    assert len(server.requests) < 150


def test_images_are_copied_from_a_folder(server, tmp_path):
    entries = publish(server, 4)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        (source / name).write_bytes(server.files[name])
    (source / "2.jpg").write_bytes(server.files["2.jpg"][:1000])
    failures = obtain(entries, target, source=source)
    assert sorted(failures) == ["2.jpg", "3.jpg"]
    assert "not a readable image" in failures["2.jpg"] and str(source / "3.jpg") in failures["3.jpg"]
    assert contents(target) == {name: server.files[name] for name in ("0.jpg", "1.jpg")}
    assert server.requests == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"file_name": "../1.jpg"}, "'../1.jpg' must be a plain name"),
        ({"file_name": "a\\1.jpg"}, "must be a plain name"),
        ({"file_name": ""}, "'' must be a plain name"),
        ({"coco_url": None}, "1.jpg has coco_url None, but an http"),
        ({"coco_url": "file:///etc/hosts"}, "1.jpg has coco_url 'file:///etc/hosts', but an http"),
        ({"file_name": "0.jpg"}, "two images have the file_name '0.jpg'"),
    ],
)
def test_faulty_entries_stop_before_anything_is_downloaded(server, tmp_path, change, message):
    entries = publish(server, 2)
    entries[1].update(change)
    with pytest.raises(ValueError, match=message.replace("\\", r"\\")):
        obtain(entries, tmp_path)
    assert server.requests == []
