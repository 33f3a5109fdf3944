"""Training batches of dataset dicts that can start at any step.

Detectron2's samplers, dataset dicts and semantics (an endless stream, pictures of like orientation grouped,
broken ones replaced). What differs: what a batch holds depends on seed and step alone. Detectron2 groups the
images after they were loaded and draws their augmentation from the state of the process that loads them, so
its stream cannot be continued after an interruption.
"""

import itertools
import os
import signal
import threading

import numpy as np
import torch
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..randomness import seeded

# What a trainer saves and stops at. The last is what SLURM sends before the time is up, if asked (--signal)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_TELLS_SENDERS = hasattr(signal, "sigwaitinfo")  # macOS has none, and cannot tell who sent a signal


class TrainingLoader(DataLoader):
    """Batches (list[dict]) of mapped dataset dicts for one process, from any step on.

    The augmentation of an image depends on the seed and on its position in the stream, so on (seed, epoch,
    index), whichever worker or process maps it. All processes together see in each step what one alone would.

    Args:
        records (list[dict]): in Detectron2's format.
        sampler (torch.utils.data.Sampler): of all processes, endless and the same each time it is iterated.
        mapper (callable): dict -> dict, or None for an image that cannot be read; another one is drawn then.
        batch_size (int): images a step over all processes.
        seed (int): of the augmentation.
        by_aspect_ratio (bool): a batch holds either wide or upright images, if all records have ``height``
            and ``width``.
        num_workers (int): processes that map the images.
        rank, world_size (int): which process this is, of how many.

    Raises:
        ValueError: the batch cannot be divided among the processes.
    """

    def __init__(
        self,
        records,
        sampler,
        mapper,
        batch_size,
        seed,
        by_aspect_ratio=False,
        num_workers=0,
        rank=0,
        world_size=1,
    ):
        images_of_one_process(batch_size, world_size)
        # a mapper may find sizes that the records do not have, but only when it is too late
        by_aspect_ratio = by_aspect_ratio and all("width" in r and "height" in r for r in records)
        upright = [by_aspect_ratio and r["width"] <= r["height"] for r in records]
        super().__init__(
            _Mapped(DatasetFromList(records, copy=False), mapper, seed),
            batch_sampler=_Batches(sampler, batch_size, upright, rank, world_size),
            num_workers=num_workers,
            collate_fn=trivial_batch_collator,
            # an iterator draws a seed, and would take it from the generator of the model's random numbers
            generator=torch.Generator().manual_seed(seed),
            worker_init_fn=_watch_for_the_trainer,
        )

    def __iter__(self):
        """As of DataLoader; a signal to the whole group of processes ends no worker while a trainer saves."""
        if not _TELLS_SENDERS:
            return super().__iter__()
        # forked workers inherit it, and with them every thread that a library starts there
        usual = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, usual)

    def seek(self, step):
        """Let the next iterator begin with the batch of this step, counted from 0."""
        self.batch_sampler.start = step


class _Batches(Sampler):
    """Endless batches of (position in the stream, index), of each the part of one process."""

    def __init__(self, sampler, batch_size, upright, rank, world_size):
        self.sampler, self.batch_size, self.upright = sampler, batch_size, upright
        self.rank, self.world_size = rank, world_size
        self.start = 0

    def __iter__(self):
        return itertools.islice(self._from_the_first(), self.start, None)

    def _from_the_first(self):
        groups = [], []
        for position, index in enumerate(self.sampler):
            group = groups[self.upright[index]]
            group.append((position, index))
            if len(group) == self.batch_size:
                yield group[self.rank :: self.world_size]
                group.clear()


class _Mapped(Dataset):
    def __init__(self, records, mapper, seed):
        self.records, self.mapper, self.seed = records, mapper, seed

    def __getitem__(self, place):
        position, index = place
        with seeded(self.seed, position):
            mapped = self.mapper(self.records[index])
            if mapped is None:
                others = np.random.permutation(len(self.records))
                mapped = next((m for i in others if (m := self.mapper(self.records[i])) is not None), None)
        if mapped is None:
            raise ValueError(f"none of the {len(self.records)} training images can be read; see the log")
        return mapped


def _watch_for_the_trainer(_):
    if _TELLS_SENDERS:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a worker that is no fork has not inherited it
        threading.Thread(target=_end_with_the_trainer, daemon=True).start()


def _end_with_the_trainer():
    # a trainer that fails sends its workers SIGTERM and waits for their end
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


def build_training_loader(cfg, mapper):
    """TrainingLoader over DATASETS.TRAIN, with the sampler, batch size and grouping of the config.

    A data set that is no list of dicts gets Detectron2's loader, which cannot begin at a step.

    The seed is SEED, or a random one if that is negative.

    Raises:
        ValueError: SOLVER.IMS_PER_BATCH cannot be divided among the processes.
    """
    seed, world_size = shared_seed(cfg), comm.get_world_size()
    images_of_one_process(cfg.SOLVER.IMS_PER_BATCH, world_size)
    with seeded(seed):  # samplers draw their seeds
        parts = _train_loader_from_config(cfg, mapper=mapper)
    if not isinstance(parts["dataset"], list):  # a data set of one's own, which may be endless
        return build_detection_train_loader(**parts)
    arrays = [record.get("sem_seg_array") for record in parts["dataset"]]
    repeats = foreground_repeats(cfg, None if any(a is None for a in arrays) else arrays)
    if repeats:
        records = zip(parts["dataset"], repeats, strict=True)
        parts["dataset"] = [record for record, number in records for _ in range(number)]
        parts["sampler"] = TrainingSampler(len(parts["dataset"]), seed=seed)
    # each of Detectron2's samplers would leave out what other processes take, before images are grouped
    parts["sampler"]._rank, parts["sampler"]._world_size = 0, 1
    return TrainingLoader(
        parts["dataset"],
        parts["sampler"],
        mapper,
        parts["total_batch_size"],
        seed,
        parts["aspect_ratio_grouping"],
        parts["num_workers"],
        comm.get_rank(),
        world_size,
    )


def foreground_repeats(cfg, labels):
    """How often each image comes in a pass, by DATASETS.FOREGROUND_REPEATS.

    Args:
        cfg (CfgNode)
        labels (iterable of ndarray or Tensor, or None): of the pixels of each image; 0 is the background and
            255 does not count. None: the images have no such labels.

    Returns:
        list[int] or None: None if each comes once.

    Raises:
        ValueError: the number is below 1, or above 1 without labels of pixels or with another sampler.
    """
    number = cfg.DATASETS.FOREGROUND_REPEATS
    if number < 1 or (number > 1 and labels is None):
        raise ValueError(
            f"DATASETS.FOREGROUND_REPEATS must be at least 1, and 1 for {', '.join(cfg.DATASETS.TRAIN)} if "
            f"that is no set of slices with a label for each pixel, such as lgg_train; got {number}"
        )
    if number == 1:
        return None
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            "DATASETS.FOREGROUND_REPEATS above 1 needs DATALOADER.SAMPLER_TRAIN TrainingSampler, got "
            f"{cfg.DATALOADER.SAMPLER_TRAIN}, which chooses images itself"
        )
    return [number if bool(((pixels > 0) & (pixels < 255)).any()) else 1 for pixels in labels]


def images_of_one_process(batch_size, world_size):
    """int: the images a step of each process.

    Raises:
        ValueError: the batch cannot be divided among the processes.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH must be a multiple of the number of processes, {world_size}, "
            f"got {batch_size}"
        )
    return batch_size // world_size


def shared_seed(cfg):
    """int: SEED, or if that is negative a random one, in all processes the same."""
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
