"""Cross-validation by patient: a network for each fold, all patients measured by one that never saw them.

In OUTPUT_DIR, ``fold_<i>/`` is the output of an ordinary training, with ``patients.json`` when it is
evaluated. ``folds.json`` and ``patients.csv`` hold all patients once every fold is done. ``ensemble/`` is of
all networks together, on patients that none of them saw.
"""

import json
import logging
import os
import re
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data.folds import empty_fold, fold_name, patients_of
from ..evaluation.segmentation_metrics import bootstrap_interval, spread
from ..files import as_csv, write_atomically
from ..modeling import SegmentorEnsemble
from ..provenance import versions
from .checkpoint import IsoCheckpointer
from .checks import explained_missing_files
from .choices import epochs_to_iterations
from .earlier_training import changes
from .predictor import load_network
from .setup import load_config, setup
from .trainer import Trainer

CONFIDENCE = 0.95
# Keys with such beginnings may change between a training and its evaluation
OF_NO_ACCOUNT = ("TEST.", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT")


class CrossValidation:
    """Trains and evaluates the folds of DATASETS.TRAIN, each in its own folder, from where it stopped.

    Every fold trains by the same config on the patients of all other folds. A fold that is trained is not
    trained again, nor evaluated again unless TEST says something else. The ensemble of all networks is
    evaluated on those of DATASETS.TEST that are not among DATASETS.TRAIN.

    Args:
        config_file (str): as of a training.
        opts (sequence[str]): keys and values in turn.
        folds (int): how many.
        only (sequence[int]): the folds to train and evaluate, from 0; none: all. Several machines can share
            the folds.

    Raises:
        ValueError: no such fold, fewer patients than folds, data sets that have no patients or share some, or
            a split of LGG that is one of folds already.
        FileExistsError: a fold's folder holds a training with another config.
        FileNotFoundError, KeyError: as of a training.
    """

    def __init__(self, config_file, opts=(), folds=5, only=()):
        self.config_file, self.opts = config_file, list(opts)
        self.cfg = load_config(config_file, self.opts)
        self.folds, self.only = folds, sorted(set(only)) or range(folds)
        self._check()
        self._of_folds = [load_config(config_file, self._opts(fold)) for fold in range(folds)]
        for cfg in self._of_folds:
            _progress(cfg)

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
            if (fold := empty_fold(name, self.folds)) is not None:
                raise ValueError(
                    f"fold {fold} of {self.folds} would have none of the {len(found)} patients of {name}, "
                    "which its frozen order spreads unevenly: take another number of folds"
                )
            patients += found
        for name in self.held_out:
            with explained_missing_files():
                shared = sorted(set(patients) & set(patients_of(name)))
            if shared:
                raise ValueError(
                    f"{name} (DATASETS.TEST) has patients of DATASETS.TRAIN, {shared[0]} for one. The folds' "
                    'ensemble is measured on others: name a set of these, or DATASETS.TEST "()" for none'
                )
        if len(set(patients)) < len(patients):
            raise ValueError(f"the sets of DATASETS.TRAIN, {', '.join(datasets.TRAIN)}, share patients")
        wrong = [fold for fold in self.only if not 0 <= fold < self.folds]
        if wrong:
            raise ValueError(f"there is no fold {wrong[0]}: {self.folds} folds are 0 to {self.folds - 1}")

    @property
    def held_out(self):
        """list[str]: the data sets on which the ensemble is measured."""
        return [name for name in self.cfg.DATASETS.TEST if name not in self.cfg.DATASETS.TRAIN]

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
        comm.synchronize()
        weights = [_progress(cfg)[0] for cfg in self._of_folds]
        is_done = all(_read_record(cfg, [file]) for cfg, file in zip(self._of_folds, weights, strict=True))
        comm.synchronize()
        if not is_done:
            return None
        if self.held_out:
            self._evaluate_ensemble(weights)
        return self._summary(weights) if comm.is_main_process() else None

    def _run_fold(self, fold):
        # else the log of a fold would go into the files of those before, too, and twice to the screen
        for name in ("detectron2", "fvcore", "iso_d2"):
            logging.getLogger(name).handlers.clear()
        setup_logger.cache_clear()
        cfg = setup(Namespace(config_file=self.config_file, opts=self._opts(fold), eval_only=False))
        weights, is_finished = _progress(cfg)
        is_evaluated = is_finished and _read_record(cfg, [weights]) is not None
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
        _write_record(cfg, [weights])

    def _evaluate_ensemble(self, weights):
        cfg = self._of_ensemble()
        is_evaluated = _read_record(cfg, weights) is not None
        comm.synchronize()
        if not is_evaluated:
            Trainer.test(cfg, load_ensemble(cfg, weights))
            _write_record(cfg, weights)

    def _of_ensemble(self):
        cfg = self.cfg.clone()
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "ensemble")
        cfg.DATASETS.TEST = tuple(self.held_out)
        return cfg

    def _summary(self, weights):
        patients = []
        for fold, (cfg, file) in enumerate(zip(self._of_folds, weights, strict=True)):
            patients += [{"fold": fold, **p} for p in _read_record(cfg, [file])["patients"]]
        patients.sort(key=lambda patient: patient["patient"])
        content = {
            "folds": self.folds,
            "data": list(self.cfg.DATASETS.TRAIN),
            **_measures(patients),
            "by_fold": [_measures([p for p in patients if p["fold"] == fold]) for fold in range(self.folds)],
            "patients": patients,
            "versions": versions(),
        }
        if self.held_out:
            found = _read_record(self._of_ensemble(), weights)["patients"]
            content["ensemble"] = {"data": self.held_out, **_measures(found), "patients": found}
        write_atomically(Path(self.cfg.OUTPUT_DIR, "folds.json"), json.dumps(content, indent=1))
        write_atomically(Path(self.cfg.OUTPUT_DIR, "patients.csv"), as_csv(patients))
        return content


def load_ensemble(cfg, weights):
    """SegmentorEnsemble: networks of one config with the weights of several files (sequence of str)."""
    return SegmentorEnsemble([load_network(cfg, str(file)) for file in weights])


def find_folds(folder):
    """The networks that a cross-validation has left in its OUTPUT_DIR.

    Args:
        folder (str or Path): OUTPUT_DIR, with ``fold_0`` and so on.

    Returns:
        tuple[Path, list[Path]]: a config of them, and their weights, fold by fold.

    Raises:
        FileNotFoundError: there are none, or one is not trained to its end.
    """
    config_file = Path(folder, "fold_0", "config.yaml")
    named = config_file.is_file() and re.search(r"_fold0of(\d+)_train", config_file.read_text())
    if not named:
        raise FileNotFoundError(
            f"{folder} is no OUTPUT_DIR of `iso-d2 folds`: it has no fold_0/config.yaml of it"
        )
    weights = [Path(folder, f"fold_{fold}", "model_final.pth") for fold in range(int(named[1]))]
    missing = [str(file) for file in weights if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: let `iso-d2 folds` finish all {named[1]} folds")
    return config_file, weights


def _progress(cfg):
    """The last checkpoint in OUTPUT_DIR, if any (str or None), and whether it is that of the end.

    The end is the last step, or where TEST.PATIENCE ended the training.

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
    stopping = state["trainer"].get("hooks", {}).get("EarlyStoppingHook", {})
    has_stopped = 0 < cfg.TEST.PATIENCE <= stopping.get("since", 0)
    return file, has_stopped or state["iteration"] + 1 >= cfg.SOLVER.MAX_ITER


def _measures(patients):
    """dict: number of patients (list[dict]), and of their ``dice`` mean, quartiles and bootstrap interval."""
    dice = [patient["dice"] for patient in patients]
    interval = {"interval": bootstrap_interval(dice, CONFIDENCE), "confidence": CONFIDENCE}
    return {"n": len(dice), "volume_dice": spread(dice) | interval}


def _record(cfg):
    return Path(cfg.OUTPUT_DIR, "patients.json")


def _identity(cfg, weights):
    """dict: of which networks, data and settings the measures are."""
    states = [(os.path.basename(file), os.path.getsize(file), os.stat(file).st_mtime_ns) for file in weights]
    settings = [list(cfg.DATASETS.TEST), list(cfg.TEST.MIRROR_AXES), dict(cfg.TEST.SEGMENTATION)]
    return json.loads(json.dumps({"weights": states, "settings": settings}))


def _write_record(cfg, weights):
    if comm.is_main_process():
        patients = []
        for name in cfg.DATASETS.TEST:
            file = Path(cfg.OUTPUT_DIR, "inference", name, "segmentation.json")
            patients += json.loads(file.read_text())["patients"]
        content = _identity(cfg, weights) | {"patients": patients}
        write_atomically(_record(cfg), json.dumps(content, indent=1))
    comm.synchronize()


def _read_record(cfg, weights):
    """dict or None: the measures of patients, if they are of these weights and settings."""
    if None in weights or not _record(cfg).is_file():
        return None
    record = json.loads(_record(cfg).read_text())
    return record if record.items() >= _identity(cfg, weights).items() else None
