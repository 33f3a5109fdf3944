"""The figures of long trainings are taken as they say."""

import mmap

import endurance
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from iso_d2.engine import AverageHook, Trainer


@pytest.fixture(autouse=True)
def clean():
    yield
    if "tiny_train" in DatasetCatalog:
        DatasetCatalog.remove("tiny_train")
        MetadataCatalog.remove("tiny_train")


def test_a_leak_is_seen(tmp_path, monkeypatch):
    kept, files, run_step = [], [], Trainer.run_step

    def leaking_run_step(self):
        run_step(self)
        kept.append(mmap.mmap(-1, 2**20))  # freed memory of earlier tests would take a tensor
        kept[-1].write(bytes(2**20))
        files.append((tmp_path / f"{self.iter}").open("w"))

    monkeypatch.setattr(Trainer, "run_step", leaking_run_step)
    result = endurance.memory(20, tmp_path, period=5)
    for file in files:
        file.close()
    assert result["steps"] == [5, 10, 15, 20]
    assert result["growth after the 1000th step, KiB"] >= 10 * 1024
    assert result["open files"][-1] - result["open files"][0] == 15
    assert result["logged values"] == 9  # 8 layers and their sum


def test_parts_of_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(endurance, "START", 1)
    run_step = Trainer._seed_step

    def slow(self):
        end = endurance.time.process_time() + 0.05
        while endurance.time.process_time() < end:
            pass
        run_step(self)

    monkeypatch.setattr(Trainer, "_seed_step", slow)
    result = endurance.cost("risonet20_shapes_cls.yaml", 3, tmp_path)
    percent = result["percent"]
    assert percent["random numbers and loss"] >= 100 * 50 / result["ms a step"]
    assert 0 < percent["signals"] < 5
    assert 0 < percent["augmentation"] < 5


def test_the_cost_of_habits_is_that_of_their_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(endurance, "START", 1)
    after_step = AverageHook.after_step

    def slow(self):
        end = endurance.time.process_time() + 0.05
        while endurance.time.process_time() < end:
            pass
        after_step(self)

    monkeypatch.setattr(AverageHook, "after_step", slow)
    result = endurance.habits("risonet20_shapes_cls.yaml", 3, tmp_path, rounds=1)
    assert 50 <= result["ms a step"]["average"] < 80
    assert result["ms a step"].keys() == {"average", "step in 1 parts", "step in 4 parts"}
