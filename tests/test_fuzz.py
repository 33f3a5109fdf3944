"""The harness finds what it looks for, and 200 damaged files come to nothing bad."""

import fuzz
import pytest

from iso_d2.files import read_image


def test_damaged_files_are_read_right_or_refused_by_name():
    result = fuzz.run(200)
    assert result["failures"] == []
    assert all(sum(counts.values()) == 25 for counts in result["outcomes"].values())


@pytest.mark.parametrize(
    "check, found",
    [
        (lambda folder, chance: None, "right"),
        (lambda folder, chance: open(folder / "absent"), "raw error"),  # noqa: SIM115
        (lambda folder, chance: fuzz.os.kill(fuzz.os.getpid(), 11), "crash"),
        (lambda folder, chance: read_image(folder / "absent.png", "RGB"), "named error"),
    ],
)
def test_outcomes_are_told_apart(monkeypatch, check, found):
    monkeypatch.setitem(fuzz.KINDS, "made up", check)
    assert fuzz.outcome("made up", 1).split(":")[0] == found


def test_a_hang_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setitem(fuzz.KINDS, "made up", lambda folder, chance: fuzz.signal.pause())
    assert fuzz.outcome("made up", 1) == "more than 0.2 s"


def test_a_wrong_result_is_found(monkeypatch):
    def wrong(folder, chance):
        raise fuzz.Wrong("other pixels")

    monkeypatch.setitem(fuzz.KINDS, "made up", wrong)
    assert fuzz.outcome("made up", 1) == "wrong: other pixels"
