"""Whole batches of images that stay in the memory of the training device, augmented there.

A data set as small as CIFAR fits there as uint8. What would be one Python call and one copy for each image is
then a few operations for each batch, without worker processes and without waiting for the device.
"""

import itertools
import math

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.utils import comm
from torch.nn import functional as F

from ..randomness import derived_seed
from .labels import LabelRange
from .loader import foreground_repeats, images_of_one_process, shared_seed

# (r, P): the images of process r of P
_ALONE = (0, 1)


def flip_at_random(images, generator, share=_ALONE):
    """Mirror each image of (B, C, H, W) left to right with probability 1/2; `share` is `crop_at_random`'s."""
    (rank, world_size), number, device = share, len(images), images.device
    mirrored = torch.rand(number * world_size, generator=generator, device=device)[rank::world_size] < 0.5
    # Whole images are copied four times as fast on the CPU as pixels are chosen by torch.where.
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, torch.arange(number, device=device) + number * mirrored)


def crop_at_random(images, padding, generator, share=_ALONE):
    """Pad each image of (B, C, H, W) with zeros and cut one of its (2 padding + 1)^2 windows out.

    With `share` (r, P) they are r, r + P, r + 2 P, ... of P B images, and what is drawn for these is theirs.
    """
    number, channels, height, width = images.shape
    (rank, world_size), device = share, images.device
    drawn = torch.randint(2 * padding + 1, (2, number * world_size, 1, 1), generator=generator, device=device)
    top, left = drawn[:, rank::world_size]
    planes = torch.arange(number * channels, device=device).view(number, channels, 1)
    rows = planes * (height + 2 * padding) + top + torch.arange(height, device=device)  # (B, C, H)
    starts = rows * (width + 2 * padding) + left
    # Any `width` pixels in a row, as a view: copied row by row, some ten times as fast as pixel by pixel.
    runs = F.pad(images, [padding] * 4).flatten().unfold(0, width, 1)
    return runs.index_select(0, starts.flatten()).view(images.shape)


class TrainingBatches:
    """Endless training batches, shuffled anew in each pass over the data and augmented.

    All processes go through the stream of Detectron2's TrainingSampler, and each takes its share of every
    batch: no image comes twice in a pass, and together they see what one process alone would.

    Args:
        images (Tensor): uint8, (N, 3, H, W), on the device where the batches are wanted.
        labels (Tensor): int64 (N,), or uint8 (N, H, W) with neither flip nor crop; on the same device.
        batch_size (int): images a step over all processes.
        seed (int): of the shuffling and the augmentation; the same in all processes.
        flip (bool): mirror images at random.
        crop_padding (int): cut images at random after padding by so many pixels; 0: do not.
        rank, world_size (int): which process this is, of how many.
        repeats (sequence of int or None): how often each image comes in a pass; None: once.

    Raises:
        ValueError: the batch cannot be divided among the processes, there are no images, or the padding is
            negative.
    """

    def __init__(
        self, images, labels, batch_size, seed, flip=True, crop_padding=0, rank=0, world_size=1, repeats=None
    ):
        images_of_one_process(batch_size, world_size)
        if len(images) == 0:
            raise ValueError("the training data have no images")
        if crop_padding < 0:
            raise ValueError(
                f"INPUT.CLASSIFICATION.CROP_PADDING must be 0 (no crop) or more pixels, got {crop_padding}"
            )
        self.images, self.labels = images, labels
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.crop_padding = crop_padding
        self.rank, self.world_size = rank, world_size
        self.start = 0
        places = torch.arange(len(images))
        self._places = places if repeats is None else places.repeat_interleave(torch.tensor(repeats))

    def seek(self, step):
        """Let the next iterator begin with the batch of this step, counted from 0."""
        self.start = step

    def __iter__(self):
        augmentation, share = torch.Generator(self.images.device), (self.rank, self.world_size)
        for step, indices in itertools.islice(enumerate(self._indices()), self.start, None):
            # each step flips and crops in its own way
            augmentation.manual_seed(derived_seed(self.seed, 0, step))
            images = self.images.index_select(0, indices)
            if self.crop_padding:
                images = crop_at_random(images, self.crop_padding, augmentation, share)
            if self.flip:
                images = flip_at_random(images, augmentation, share)
            yield {"images": images, "labels": self.labels[indices]}

    def _indices(self):
        """This process's share of each batch: int64, (batch_size / world_size,)."""
        device = self.images.device
        # On the CPU, where the order depends on the seed alone and not on the device.
        shuffling = torch.Generator().manual_seed(self.seed)
        pending = torch.empty(0, dtype=torch.int64, device=device)
        while True:
            while len(pending) < self.batch_size:
                order = self._places[torch.randperm(len(self._places), generator=shuffling)]
                pending = torch.cat([pending, order.to(device, non_blocking=True)])
            yield pending[self.rank : self.batch_size : self.world_size]
            pending = pending[self.batch_size :]


class EvaluationBatches:
    """The images once, in order, unchanged; each process gets the share of Detectron2's InferenceSampler.

    Args:
        images (Tensor): uint8, (N, 3, H, W), on the device where the batches are wanted.
        labels (Tensor): int64, (N,), on the same device.
        batch_size (int): images a batch in each process; the last batch may be smaller.
        rank, world_size (int): which process this is, of how many.

    Raises:
        ValueError: the batch size is not positive.
    """

    def __init__(self, images, labels, batch_size, rank=0, world_size=1):
        if batch_size < 1:
            raise ValueError(f"TEST.BATCH_SIZE must be at least 1, got {batch_size}")
        size, left = divmod(len(images), world_size)
        start = rank * size + min(rank, left)
        share = slice(start, start + size + (rank < left))
        self.images, self.labels = images[share], labels[share]
        self.batch_size = batch_size

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield {"images": self.images[batch], "labels": self.labels[batch]}


def in_memory(cfg, names):
    """bool: whether data sets are to be loaded as whole batches.

    Each must have arrays, and the config allow it: INPUT.IN_MEMORY, and for segmented images an empty
    INPUT.ALBUMENTATIONS.TRAIN, since the batches here only know the augmentation of classifiers.
    """
    if _are_segmented(names) and cfg.INPUT.ALBUMENTATIONS.TRAIN:
        return False
    return cfg.INPUT.IN_MEMORY and all(MetadataCatalog.get(name).get("load_arrays") for name in names)


def _are_segmented(names):
    return any(MetadataCatalog.get(name).get("evaluator_type") == "medical_segmentation" for name in names)


def build_training_batches(cfg):
    """TrainingBatches over DATASETS.TRAIN, on MODEL.DEVICE.

    Labelled images are augmented by INPUT.CLASSIFICATION, segmented ones stay unchanged.

    Raises:
        ValueError: as TrainingBatches, INPUT.FORMAT is neither RGB nor BGR, or the model has no class for a
            label.
    """
    options, names = cfg.INPUT.CLASSIFICATION, cfg.DATASETS.TRAIN
    segmented = _are_segmented(names)
    images, labels = _load(cfg, names, LabelRange.from_config(cfg))
    return TrainingBatches(
        images,
        labels,
        cfg.SOLVER.IMS_PER_BATCH,
        seed=shared_seed(cfg),
        flip=options.FLIP and not segmented,
        crop_padding=0 if segmented else options.CROP_PADDING,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        repeats=foreground_repeats(cfg, labels if segmented else None),
    )


def build_evaluation_batches(cfg, name):
    """EvaluationBatches of TEST.BATCH_SIZE over a data set that has arrays, on MODEL.DEVICE."""
    arrays = _load(cfg, [name])
    return EvaluationBatches(*arrays, cfg.TEST.BATCH_SIZE, comm.get_rank(), comm.get_world_size())


def _load(cfg, names, label_range=None):
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT must be RGB or BGR here, got {cfg.INPUT.FORMAT!r}")
    check_metadata_consistency("stuff_classes" if _are_segmented(names) else "thing_classes", names)
    parts = [MetadataCatalog.get(name).load_arrays() for name in names]
    if label_range is not None:
        for name, part in zip(names, parts, strict=True):
            label_range.check(part.labels, name)
    images = torch.from_numpy(np.concatenate([part.images for part in parts]))
    labels = torch.from_numpy(np.concatenate([part.labels for part in parts]))
    if cfg.INPUT.FORMAT == "BGR":
        images = images.flip(1)
    return images.to(cfg.MODEL.DEVICE), labels.to(cfg.MODEL.DEVICE)
