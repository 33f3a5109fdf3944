"""Slices with tumour come more often, in whole batches and one by one."""

import itertools
from collections import Counter

import pytest
from patient_toys import SLICES, UNET, register_patients

from iso_d2.data.batches import build_training_batches
from iso_d2.data.loader import build_training_loader, foreground_repeats
from iso_d2.data.mappers import build_mapper
from iso_d2.engine.setup import load_config


@pytest.fixture
def cfg(tmp_path):
    register_patients("repeated_train", tmp_path / "slices", "AB")
    names = ["DATASETS.TRAIN", "('repeated_train',)", "DATASETS.FOREGROUND_REPEATS", "4"]
    return load_config(opts=[*UNET, *names])


# Of each patient the first of the slices has no tumour: 2 (1 + 4 * 2) slices a pass, 9 batches of 2
BATCHES = 1 + 4 * (SLICES - 1)


def seen(batches, images):
    return Counter(image.numpy().tobytes() for batch in batches for image in images(batch))


def test_of_whole_batches(cfg):
    batches = build_training_batches(cfg)
    found = [batch["images"] for batch in itertools.islice(batches, 2 * BATCHES)]
    counts = seen(found[:BATCHES], list)
    assert sorted(counts.values()) == [1, 1, 4, 4, 4, 4] and seen(found[BATCHES:], list) == counts
    batches.seek(BATCHES + 1)
    assert (next(iter(batches))["images"] == found[BATCHES + 1]).all()
    cfg.DATASETS.FOREGROUND_REPEATS = 1
    assert set(seen(itertools.islice(build_training_batches(cfg), 3), lambda b: b["images"]).values()) == {1}


def test_of_slices_one_by_one(cfg):
    loader = build_training_loader(cfg, build_mapper(cfg, is_train=True))
    found = list(itertools.islice(loader, BATCHES))
    ids = Counter(record["image_id"] for batch in found for record in batch)
    assert ids == {"A_1": 1, "B_1": 1, "A_2": 4, "A_3": 4, "B_2": 4, "B_3": 4}
    loader.seek(2)
    assert [r["image_id"] for r in next(iter(loader))] == [r["image_id"] for r in found[2]]


def test_only_slices_have_a_foreground(cfg):
    cfg.DATASETS.FOREGROUND_REPEATS = 0
    with pytest.raises(ValueError, match=r"FOREGROUND_REPEATS must be at least 1.*got 0"):
        build_training_batches(cfg)
    cfg.DATASETS.FOREGROUND_REPEATS = 2
    with pytest.raises(ValueError, match="and 1 for repeated_train if that is no set of slices"):
        foreground_repeats(cfg, None)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ValueError, match=r"needs DATALOADER\.SAMPLER_TRAIN TrainingSampler, got RepeatF"):
        foreground_repeats(cfg, [])
