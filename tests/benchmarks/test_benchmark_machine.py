import pytest

from benchmarks.machine import measure_machine
from benchmarks.options import Options

TINY = Options(depth=8, batch=2, size=(16, 16), repeats=1)


def test_machine_part_has_rates_and_the_floors_that_follow(monkeypatch):
    monkeypatch.setattr("benchmarks.machine.PRODUCT", (2, 8, 8, 8))
    monkeypatch.setattr("benchmarks.machine.COPY", 64)
    rates, floors = measure_machine(TINY, 0)
    rate = rates.rows[0]["measured"]["median"] * 1e9
    works = {row["work"]: row for row in floors.rows}
    assert all(
        row["floor, ms"] == pytest.approx(1e3 * row["1e9 multiply-adds"] * 1e9 / rate) for row in floors.rows
    )
    forward, both = (row["1e9 multiply-adds"] for row in floors.rows[1:])
    assert both == pytest.approx(3 * forward)
    # 13 frequencies of a 3x3 kernel, five products each, beside two transforms; R-ISONet-8 has 6 and 2 1x1
    assert works["penalty, value and gradient"]["1e9 multiply-adds"] > 13 * 5 * (2 * 16**3 + 2 * 32**3) / 1e9
