"""Batches that can start at any step: dataset dicts and images in memory."""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from iso_d2.data.batches import TrainingBatches
from iso_d2.data.loader import TrainingLoader


def mapper(record):
    """Draws from every generator that a mapper may use."""
    if record.get("broken"):
        return None
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


def records(n=7, broken=()):
    # every third one is upright
    sizes = [(20, 30) if i % 3 else (30, 20) for i in range(n)]
    return [{"i": i, "height": h, "width": w, "broken": i in broken} for i, (h, w) in enumerate(sizes)]


def loader(n=7, batch_size=2, rank=0, world_size=1, broken=(), **options):
    dicts = records(n, broken)
    sampler = TrainingSampler(n, seed=5)
    return TrainingLoader(dicts, sampler, mapper, batch_size, 3, rank=rank, world_size=world_size, **options)


def take(batches, n):
    return list(itertools.islice(batches, n))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_step_whatever_the_workers(grouped, workers):
    undisturbed = take(loader(by_aspect_ratio=grouped), 12)
    later = loader(by_aspect_ratio=grouped, num_workers=workers)
    later.seek(5)
    assert take(later, 7) == undisturbed[5:]
    drawn = {image["drawn"] for batch in undisturbed for image in batch}
    assert len(drawn) == 24  # each image of each epoch is augmented in its own way


def test_an_epoch_is_a_permutation_over_two_processes_too():
    alone = [image["i"] for batch in take(loader(), 7) for image in batch]
    assert sorted(alone[:7]) == sorted(alone[7:]) == list(range(7))
    halves = [take(loader(rank=rank, world_size=2), 7) for rank in (0, 1)]
    together = [image for pair in zip(*halves, strict=True) for batch in pair for image in batch]
    assert together == [image for batch in take(loader(), 7) for image in batch]


@pytest.mark.parametrize("broken", [(), (2, 4)])
def test_processes_together_see_in_each_step_what_one_alone_does(broken):
    options = {"batch_size": 4, "by_aspect_ratio": True, "broken": broken}
    parts = [take(loader(rank=rank, world_size=2, **options), 9) for rank in (0, 1)]
    together = [[*pair[0], *pair[1]] for pair in zip(*parts, strict=True)]
    for found, wanted in zip(together, take(loader(**options), 9), strict=True):
        assert sorted(image["drawn"] for image in found) == sorted(image["drawn"] for image in wanted)


def test_the_batch_of_several_processes_divides():
    with pytest.raises(ValueError, match="multiple of the number of processes, 2, got 3"):
        loader(batch_size=3, world_size=2)


def test_groups_are_wide_or_upright():
    batches = take(loader(by_aspect_ratio=True), 20)
    assert all(len({image["width"] > image["height"] for image in batch}) == 1 for batch in batches)
    counts = np.bincount([image["i"] for batch in batches for image in batch])
    assert counts.min() >= 4
    assert counts.max() <= 7


def test_records_without_sizes_are_not_grouped():
    dicts = [{"i": i} for i in range(4)]
    batches = TrainingLoader(dicts, TrainingSampler(4, seed=5), mapper, 4, 3, by_aspect_ratio=True)
    assert sorted(image["i"] for image in next(iter(batches))) == [0, 1, 2, 3]


def test_broken_images_are_replaced_the_same_after_a_restart():
    undisturbed = take(loader(broken=(2, 4)), 9)
    assert {image["i"] for batch in undisturbed for image in batch} == {0, 1, 3, 5, 6}
    later = loader(broken=(2, 4), num_workers=1)
    later.seek(3)
    assert take(later, 6) == undisturbed[3:]


def test_only_broken_images():
    with pytest.raises(ValueError, match="none of the 3 training images can be read"):
        next(iter(loader(3, broken=(0, 1, 2))))


def test_loading_leaves_the_generators_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    take(loader(), 3)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_batches_in_memory_from_any_step(rank, world_size):
    images = torch.arange(10 * 3 * 6 * 6).view(10, 3, 6, 6).remainder(251).to(torch.uint8)

    def batches():
        return TrainingBatches(
            images, torch.arange(10), 4, seed=2, crop_padding=2, rank=rank, world_size=world_size
        )

    undisturbed, later = take(batches(), 9), batches()
    later.seek(4)
    for found, wanted in zip(take(later, 5), undisturbed[4:], strict=True):
        assert torch.equal(found["labels"], wanted["labels"])
        assert torch.equal(found["images"], wanted["images"])
    flat = {batch["images"].numpy().tobytes() for batch in undisturbed}
    assert len(flat) == 9


def test_a_signal_to_the_workers_does_not_end_them(monkeypatch):
    def start_a_thread(_):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

    # a library may start threads in a worker before our function of it runs; they get signals as well
    monkeypatch.setattr(torch, "set_num_threads", start_a_thread)
    batches = iter(loader(num_workers=1))
    first = next(batches)
    # of another process; that of the trainer does end them
    for _ in range(8):
        subprocess.run(["kill", "-TERM", str(batches._workers[0].pid)], check=True)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert [first, *take(batches, 8)] == take(loader(), 9)


def fail():
    batches = iter(loader(num_workers=1))
    next(batches)
    raise RuntimeError("the iterator stays in this traceback")


def test_a_trainer_that_fails_does_not_wait_for_its_workers():
    process = multiprocessing.get_context("fork").Process(target=fail)
    process.start()
    process.join(15)
    alive = process.is_alive()
    process.kill()
    assert not alive


def test_a_killed_worker_is_reported():
    batches = iter(loader(num_workers=1))
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*killed by signal: Killed|exited unexp"):
        take(batches, 99)
