import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from torch.nn import functional as F

from iso_d2.config import add_iso_config
from iso_d2.data import LabelledImages, register_labelled_images
from iso_d2.data.batches import (
    EvaluationBatches,
    TrainingBatches,
    build_evaluation_batches,
    build_training_batches,
    crop_at_random,
    flip_at_random,
    in_memory,
)


def data(count, height=4, width=6):
    """Images of random pixels; each label is the image's number."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(1, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count)


def plain(count, batch_size, **options):
    return TrainingBatches(*data(count), batch_size, **{"seed": 7, "flip": False, **options})


def labels(batches, number):
    return [batch["labels"].tolist() for batch in itertools.islice(batches, number)]


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def test_batches_have_images_with_their_labels():
    images, _ = data(10)
    for batch in itertools.islice(plain(10, 4), 6):
        assert batch.keys() == {"images", "labels"}
        assert batch["images"].dtype == torch.uint8 and batch["labels"].dtype == torch.int64
        assert batch["images"].shape == (4, 3, 4, 6)
        assert torch.equal(batch["images"], images[batch["labels"]])


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (3, 8)])
def test_each_pass_has_every_image_once_and_is_shuffled_anew(count, batch_size):
    stream = joined(labels(plain(count, batch_size), 5 * count))
    passes = [stream[start : start + count] for start in range(0, 4 * count, count)]
    assert all(sorted(one) == list(range(count)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_the_seed_decides_the_order():
    assert labels(plain(50, 10), 8) == labels(plain(50, 10), 8)
    assert labels(plain(50, 10), 8) != labels(plain(50, 10, seed=8), 8)


def test_two_processes_share_the_batches_of_one():
    whole = labels(plain(10, 4), 15)
    shares = [labels(plain(10, 4, rank=rank, world_size=2), 15) for rank in range(2)]
    for one, first, second in zip(whole, *shares, strict=True):
        assert len(first) == len(second) == 2
        assert sorted(first + second) == sorted(one)
    # Ten batches of 4 are four passes over 10 images.
    taken = sorted(joined(shares[0][:10] + shares[1][:10]))
    assert taken == sorted(list(range(10)) * 4)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_stream_is_that_of_detectron2(rank, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    ours = joined(labels(plain(10, 6, rank=rank, world_size=3), 9))
    assert ours == list(itertools.islice(TrainingSampler(10, seed=7), 18))


def test_flips_mirror_about_half_of_the_images():
    images, _ = data(400)
    flipped = flip_at_random(images, torch.Generator().manual_seed(0))
    expected = images.numpy()[..., ::-1]
    mirrored = [(a.numpy() == b).all() for a, b in zip(flipped, expected, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250  # five standard deviations about 200


def test_crops_are_windows_of_the_padded_image_all_equally_likely():
    images, _ = data(1, height=5, width=4)
    count = 4500
    crops = crop_at_random(images.expand(count, -1, -1, -1), 1, torch.Generator().manual_seed(0))
    padded = torch.from_numpy(np.pad(images[0].numpy(), ((0, 0), (1, 1), (1, 1))))
    windows = [padded[:, top : top + 5, left : left + 4] for top in range(3) for left in range(3)]
    found = [int((crops == window).flatten(1).all(dim=1).sum()) for window in windows]
    assert sum(found) == count
    assert all(380 < number < 620 for number in found)  # five standard deviations about 500


def test_crops_differ_within_a_batch_and_keep_their_image():
    images, _ = data(50)
    crops = crop_at_random(images, 2, torch.Generator().manual_seed(1))
    padded = F.pad(images, [2] * 4)
    offsets = set()
    for crop, image in zip(crops, padded, strict=True):
        offsets |= {
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(crop, image[:, top : top + 4, left : left + 6])
        }
    assert len(offsets) > 15


def test_augmentation_follows_its_options():
    images, numbers = data(64)
    for options, changed in (
        ({"flip": False}, False),
        ({}, True),
        ({"flip": False, "crop_padding": 1}, True),
    ):
        batch = next(iter(TrainingBatches(images, numbers, 64, seed=1, **options)))
        assert (not torch.equal(batch["images"], images[batch["labels"]])) == changed


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_see_what_one_alone_does(world_size):
    images, numbers = data(30)
    options = {"batch_size": 8, "seed": 3, "crop_padding": 1}
    alone = TrainingBatches(images, numbers, **options)
    parts = [
        TrainingBatches(images, numbers, **options, rank=r, world_size=world_size) for r in range(world_size)
    ]
    for whole, *shares in itertools.islice(zip(alone, *parts, strict=True), 9):
        for key, wanted in whole.items():
            together = torch.stack([share[key] for share in shares], dim=1).flatten(0, 1)
            assert torch.equal(together, wanted)


def test_batches_that_cannot_be_divided():
    with pytest.raises(
        ValueError, match="IMS_PER_BATCH must be a multiple of the number of processes, 2, got 5"
    ):
        plain(10, 5, world_size=2)
    with pytest.raises(ValueError, match=r"CROP_PADDING must be 0 \(no crop\) or more pixels, got -1"):
        plain(10, 5, crop_padding=-1)
    with pytest.raises(ValueError, match="no images"):
        plain(0, 5)


@pytest.mark.parametrize(("count", "processes"), [(23, 1), (23, 2), (24, 4), (2, 3)])
def test_evaluation_takes_every_image_once_in_order(count, processes, monkeypatch):
    images, numbers = data(count)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: processes)
    taken = []
    for rank in range(processes):
        loader = EvaluationBatches(images, numbers, 5, rank, processes)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch["labels"]) == 5 for batch in batches[:-1])
        share = joined(batch["labels"].tolist() for batch in batches)
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        assert share == list(InferenceSampler(count))
        assert all(torch.equal(batch["images"], images[batch["labels"]]) for batch in batches)
        taken += share
    assert taken == list(range(count))


@pytest.fixture
def registered():
    """Two sets of arrays with 6 and 3 images: the red plane is 1, the green 2, the blue 3."""
    images = np.empty((6, 3, 2, 2), np.uint8)
    images[:] = np.array([1, 2, 3])[:, None, None]
    for name, count in (("arrays_a", 6), ("arrays_b", 3)):
        loaded = LabelledImages(images[:count], np.arange(count))
        register_labelled_images(name, lambda loaded=loaded: loaded, ["x"] * 6)
    yield
    for name in ("arrays_a", "arrays_b"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(**options):
    cfg = get_cfg()
    add_iso_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = ("arrays_a", "arrays_b")
    cfg.SOLVER.IMS_PER_BATCH = 9
    cfg.INPUT.CLASSIFICATION.merge_from_list([x for item in options.items() for x in item])
    return cfg


def test_several_training_sets_are_joined(registered):
    batch = next(iter(build_training_batches(config())))
    assert sorted(batch["labels"].tolist()) == [0, 0, 1, 1, 2, 2, 3, 4, 5]


def test_the_config_decides(registered):
    loader = build_training_batches(config(FLIP=False, CROP_PADDING=3))
    assert (loader.flip, loader.crop_padding, loader.batch_size) == (False, 3, 9)
    cfg = config()
    cfg.TEST.BATCH_SIZE = 4
    assert [len(x["labels"]) for x in build_evaluation_batches(cfg, "arrays_a")] == [4, 2]
    assert in_memory(cfg, ["arrays_a", "arrays_b"])
    assert not in_memory(cfg, ["arrays_a", "shapes_train"])
    cfg.INPUT.IN_MEMORY = False
    assert not in_memory(cfg, ["arrays_a"])


@pytest.mark.parametrize(("image_format", "planes"), [("RGB", [1, 2, 3]), ("BGR", [3, 2, 1])])
def test_channels_come_in_the_order_of_the_model(registered, image_format, planes):
    cfg = config()
    cfg.INPUT.FORMAT = image_format
    for loader in (build_training_batches(cfg), build_evaluation_batches(cfg, "arrays_b")):
        assert next(iter(loader))["images"][2, :, 1, 1].tolist() == planes


def test_other_formats_are_refused(registered):
    cfg = config()
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT must be RGB or BGR here, got 'L'"):
        build_training_batches(cfg)


def test_training_labels_beyond_the_model_are_refused_before_they_reach_the_device(registered):
    cfg = config()
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 6
    build_training_batches(cfg)
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 4
    with pytest.raises(ValueError, match=r"^arrays_a holds the labels 4, 5, .*MODEL.CLASSIFIER.NUM_CLASSES"):
        build_training_batches(cfg)
