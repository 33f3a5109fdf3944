"""Cross-validation by patient: a network for each fold, all patients measured by one that never saw them.

In OUTPUT_DIR, ``fold_<i>/`` is the output of an ordinary training, with ``out_of_fold.json`` when it is
evaluated. ``folds.json`` and ``patients.csv`` hold all patients once every fold is done.
"""

import csv
import io
import json
import logging
import os
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data.folds import fold_name, patients_of
from ..evaluation.segmentation_metrics import bootstrap_interval, spread
from ..files import write_atomically
from ..provenance import versions
from .checkpoint import IsoCheckpointer
from .checks import explained_missing_files
from .choices import epochs_to_iterations
from .earlier_training import changes
from .setup import load_config, setup
from .trainer import Trainer

CONFIDENCE = 0.95
# Keys with such beginnings may change between a training and its evaluation
OF_NO_ACCOUNT = ("TEST.", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT")


class CrossValidation:
    """Trains and evaluates the folds of DATASETS.TRAIN, each in its own folder, from where it stopped.

    Every fold trains by the same config on the patients of all other folds. A fold that is trained is not
    trained again, nor evaluated again unless TEST says something else.

    Args:
        config_file (str): as of a training.
        opts (sequence[str]): keys and values in turn.
        folds (int): how many.
        only (sequence[int]): the folds to train and evaluate, from 0; none: all. Several machines can share
            the folds.

    Raises:
        ValueError: no such fold, fewer patients than folds, data sets that have no patients, or a split of
            LGG that is one of folds already.
        FileExistsError: a fold's folder holds a training with another config.
        FileNotFoundError, KeyError: as of a training.
    """

    def __init__(self, config_file, opts=(), folds=5, only=()):
        self.config_file, self.opts = config_file, list(opts)
        self.cfg = load_config(config_file, self.opts)
        self.folds, self.only = folds, sorted(set(only)) or range(folds)
        self._check()
        self._of_folds = [load_config(config_file, self._opts(fold)) for fold in range(folds)]
        for fold in self.only:
            _progress(self._of_folds[fold])

    def _check(self):
        datasets = self.cfg.DATASETS
        if datasets.LGG_SPLIT == "fold":
            raise ValueError(
                "DATASETS.LGG_SPLIT is 'fold', but the folds are made here: leave it out to divide the "
                "patients of lgg_train, or take DATASETS.TRAIN \"('lgg',)\" to divide all"
            )
        if not datasets.TRAIN:
            raise ValueError("DATASETS.TRAIN is empty: name the data set whose patients are to be divided")
        patients = []
        for name in datasets.TRAIN:
            with explained_missing_files():
                found = patients_of(name)
            if not 2 <= self.folds <= len(found):
                raise ValueError(
                    f"{name} has {len(found)} patients: the number of folds must be from 2 to {len(found)}, "
                    f"got {self.folds}"
                )
            patients += found
        if len(set(patients)) < len(patients):
            raise ValueError(f"the sets of DATASETS.TRAIN, {', '.join(datasets.TRAIN)}, share patients")
        wrong = [fold for fold in self.only if not 0 <= fold < self.folds]
        if wrong:
            raise ValueError(f"there is no fold {wrong[0]}: {self.folds} folds are 0 to {self.folds - 1}")

    def _opts(self, fold):
        """list[str]: the changes to the config for a fold."""
        train, val = (
            tuple(fold_name(name, fold, self.folds, side) for name in self.cfg.DATASETS.TRAIN)
            for side in ("train", "val")
        )
        # the names say the split, so that the fold's config.yaml can be read again
        own = {"TRAIN": train, "TEST": val, "LGG_SPLIT": "patient"}
        folder = os.path.join(self.cfg.OUTPUT_DIR, f"fold_{fold}")
        more = [part for key, value in own.items() for part in (f"DATASETS.{key}", str(value))]
        return [*self.opts, *more, "OUTPUT_DIR", folder]

    def run(self):
        """Train and evaluate the folds in this process, or in all that call it together.

        Returns:
            dict or None: what ``folds.json`` holds, in the main process; None if a fold is not done yet.
        """
        for fold in self.only:
            self._run_fold(fold)
        return self.summary() if comm.is_main_process() else None

    def _run_fold(self, fold):
        # else the log of a fold would go into the files of those before, too, and twice to the screen
        for name in ("detectron2", "fvcore", "iso_d2"):
            logging.getLogger(name).handlers.clear()
        setup_logger.cache_clear()
        cfg = setup(Namespace(config_file=self.config_file, opts=self._opts(fold), eval_only=False))
        weights, is_finished = _progress(cfg)
        is_evaluated = is_finished and _read_record(cfg, weights) is not None
        comm.synchronize()  # what others have not read yet must not change
        if is_evaluated:
            return
        if is_finished:
            Trainer.evaluate(cfg, resume=True)
        else:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
            weights, _ = _progress(cfg)
        if comm.is_main_process():
            patients = []
            for name in cfg.DATASETS.TEST:
                file = Path(cfg.OUTPUT_DIR, "inference", name, "segmentation.json")
                patients += json.loads(file.read_text())["patients"]
            content = _identity(cfg, weights) | {"patients": patients}
            write_atomically(_record(cfg), json.dumps(content, indent=1))
        comm.synchronize()

    def summary(self):
        """Put the patients of all folds together and write ``folds.json`` and ``patients.csv``.

        Returns:
            dict or None: ``volume_dice`` with mean, median, q1, q3, min and the bootstrap interval of the
            mean, in percent, over ``n`` patients; ``by_fold``; ``patients``. None if a fold is not done.
        """
        patients, by_fold = [], []
        for fold in range(self.folds):
            cfg = self._of_folds[fold]
            record = _read_record(cfg, _progress(cfg)[0])
            if record is None:
                return None
            dice = [patient["dice"] for patient in record["patients"]]
            by_fold.append({"fold": fold, "n": len(dice), "mean": sum(dice) / len(dice)})
            patients += [{"fold": fold, **patient} for patient in record["patients"]]
        patients.sort(key=lambda patient: patient["patient"])
        dice = [patient["dice"] for patient in patients]
        content = {
            "folds": self.folds,
            "data": list(self.cfg.DATASETS.TRAIN),
            "n": len(dice),
            "volume_dice": spread(dice) | {"interval": bootstrap_interval(dice, CONFIDENCE)},
            "confidence": CONFIDENCE,
            "by_fold": by_fold,
            "patients": patients,
            "versions": versions(),
        }
        write_atomically(Path(self.cfg.OUTPUT_DIR, "folds.json"), json.dumps(content, indent=1))
        write_atomically(Path(self.cfg.OUTPUT_DIR, "patients.csv"), as_csv(patients))
        return content


def as_csv(rows):
    """str: rows (list[dict], with the same keys) as a table with a header."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _progress(cfg):
    """The last checkpoint in OUTPUT_DIR, if any (str or None), and whether it is that of the last step.

    Raises:
        FileExistsError: it is of another config.
    """
    checkpointer = IsoCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR)
    if not checkpointer.has_checkpoint():
        return None, False
    file = checkpointer.get_checkpoint_file()
    state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    cfg = epochs_to_iterations(cfg)
    changed = [c for c in changes(state["trainer"]["config"], cfg) if not c.startswith(OF_NO_ACCOUNT)]
    if changed:
        raise FileExistsError(
            f"{cfg.OUTPUT_DIR} holds a training with another config ({'; '.join(changed[:5])}). All folds "
            "must have the same: take another OUTPUT_DIR, or remove the folder of this fold"
        )
    return file, state["iteration"] + 1 >= cfg.SOLVER.MAX_ITER


def _record(cfg):
    return Path(cfg.OUTPUT_DIR, "out_of_fold.json")


def _identity(cfg, weights):
    """dict: of which network and by which settings the patients were measured."""
    state = os.stat(weights)
    settings = {key: value for key, value in cfg.TEST.SEGMENTATION.items()}
    return {"weights": [Path(weights).name, state.st_size, state.st_mtime_ns], "settings": settings}


def _read_record(cfg, weights):
    """dict or None: the fold's measures, if they are of these weights and settings."""
    if weights is None or not _record(cfg).is_file():
        return None
    record = json.loads(_record(cfg).read_text())
    return record if record.items() >= _identity(cfg, weights).items() else None
