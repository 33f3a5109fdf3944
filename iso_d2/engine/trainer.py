"""Detectron2's DefaultTrainer with iso_d2's hooks, optimizer, mappers, evaluators and checkpointer."""

import logging
import weakref
from collections import defaultdict
from functools import partial

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.common.history_buffer import HistoryBuffer

from ..data.batches import build_evaluation_batches, build_training_batches, in_memory
from ..data.loader import build_training_loader, shared_seed
from ..data.mappers import build_mapper
from ..evaluation import build_evaluator
from ..randomness import seed_generators
from .checkpoint import IsoCheckpointer
from .checkpoint_hooks import TrainingStopped
from .checks import (
    check_best,
    check_kind,
    check_num_classes,
    check_numbers,
    check_same_classes,
    explained_missing_files,
    warn_of_unscaled_images,
)
from .choices import epochs_to_iterations, with_seed
from .divergence import Remembering, advice
from .earlier_training import changes, check_folder_is_free, go_on_with_new_values, set_aside
from .hook_order import AFTER_CHECKPOINT, build_hooks
from .hooks import DeltaInitHook
from .mixed_precision import inner_trainer, parts_of
from .optimizer import build_optimizer
from .writers import build_writers

# Types of data sets whose mapped images are all of one size
ONE_SIZE = ("classification", "medical_segmentation")

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Train a model by a config with iso_d2's keys, on one or more GPUs or CPU processes.

    Args:
        cfg (CfgNode): ISO.DELTA_INIT, ISO.ORTHO and ISO.ANALYSIS choose the hooks.

    Raises:
        ValueError, KeyError, FileNotFoundError: a data set of DATASETS.TRAIN or DATASETS.TEST that is
            not registered, missing, empty or of a type without evaluator; before the first step.
    """

    def __init__(self, cfg):
        # not DefaultTrainer's: it gives DDP a list of devices, which DDP refuses on the CPU
        TrainerBase.__init__(self)
        for name in ("detectron2", "iso_d2"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        make_inner_trainer = inner_trainer(cfg)
        self.check_datasets(cfg)
        cfg = with_seed(epochs_to_iterations(cfg), shared_seed(cfg))
        check_numbers(cfg)
        check_best(cfg, type(self).build_evaluator.__func__ is Trainer.build_evaluator.__func__)

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        with explained_missing_files():
            data_loader = self.build_train_loader(cfg)
        for name in cfg.DATASETS.TRAIN:
            check_num_classes(cfg, name)
        check_same_classes(cfg)
        warn_of_unscaled_images(cfg, model)

        on_gpu = next(model.parameters()).is_cuda
        model = create_ddp_model(
            model, broadcast_buffers=False, device_ids=[torch.cuda.current_device()] if on_gpu else None
        )
        self._trainer = make_inner_trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = IsoCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self._batches, self._runs = None, []
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self):
        """The hooks of the config, see :func:`~iso_d2.engine.hook_order.build_hooks`."""
        return build_hooks(self, super().build_hooks())

    def build_writers(self):
        """Detectron2's, and those of ISO.WRITERS."""
        self._runs = build_writers(self.cfg)
        return super().build_writers() + self._runs

    def before_train(self):
        # else they grow by some ten values a step
        self.storage._history = defaultdict(partial(HistoryBuffer, max_length=1000))
        for run in self._runs:
            run.start(goes_on=self.start_iter > 0)
        super().before_train()
        if self.start_iter > 0 and self.cfg.TEST.BEST:
            # a checkpoint comes before the evaluation of its step, which may have been lost
            self.iter = self.storage.iter = self.start_iter - 1
            for hook in self._hooks:
                if isinstance(hook, AFTER_CHECKPOINT):
                    hook.after_step()
            self.iter = self.storage.iter = self.start_iter

    def train(self):
        """As Detectron2's. Early stopping (TEST.PATIENCE) is an end like any other."""
        try:
            return super().train()
        except TrainingStopped as stopped:
            logger.info("%s", stopped)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def run_step(self):
        if self._batches is None:
            loader, parts = self._trainer.data_loader, self.cfg.SOLVER.ACCUMULATE
            self._batches = Remembering(parts_of(loader, parts) if parts > 1 else loader)
            self._trainer._data_loader_iter_obj = self._batches
        self._seed_step()
        try:
            super().run_step()
            bound, loss = self.cfg.SOLVER.MAX_LOSS, self.storage.latest().get("total_loss", (0,))[0]
            if bound and loss > bound:
                raise FloatingPointError(f"total_loss is {loss}, above SOLVER.MAX_LOSS {bound}")
        except FloatingPointError as error:
            self._seed_step()
            # one of several processes cannot compute a step alone
            batch = self._batches.last if comm.get_world_size() == 1 else None
            raise FloatingPointError(advice(self, batch, error)) from error

    def _seed_step(self):
        """A step draws the same whatever came before it, so that a training can be continued."""
        on_gpu = next(self.model.parameters()).is_cuda
        seed_generators(self.cfg.SEED, comm.get_rank(), self.iter, cuda=on_gpu)

    def state_dict(self):
        """As Detectron2's, with the config and the number of processes."""
        more = {"config": self.cfg.dump(), "processes": comm.get_world_size(), "seed": self.cfg.SEED}
        return super().state_dict() | more

    def load_state_dict(self, state):
        """Go on from a checkpoint; where the config has changed since, its new values count.

        Raises:
            ValueError: the checkpoint is of another number of processes, or its optimizer does not fit.
        """
        processes = state.get("processes", comm.get_world_size())
        if processes != comm.get_world_size():
            raise ValueError(
                f"The checkpoint is of a training with {processes} processes, this one has "
                f"{comm.get_world_size()} and would see other batches. Go on with --num-gpus {processes}, or "
                "start from its weights alone: MODEL.WEIGHTS without --resume, in another OUTPUT_DIR."
            )
        changed = changes(state["config"], self.cfg) if "config" in state else []
        if changed:
            logger.warning(
                "Going on with a config that has changed, new values count: %s", "; ".join(changed)
            )
        seed = state.get("seed", self.cfg.SEED)
        if seed != self.cfg.SEED:
            logger.info("Going on with the seed of the checkpoint, %d", seed)
            self.cfg = with_seed(self.cfg, seed)
            self._trainer.reset_data_loader(lambda: self.build_train_loader(self.cfg))
        load = partial(super().load_state_dict, state)
        go_on_with_new_values(self._trainer.optimizer, self.scheduler, load)

    def resume_or_load(self, resume=True):
        """Continue from the last checkpoint in OUTPUT_DIR, or load MODEL.WEIGHTS.

        Args:
            resume (bool): whether to look for a last checkpoint; without one MODEL.WEIGHTS is loaded.
        """
        resumes = resume and self.checkpointer.has_checkpoint()
        weights = self.cfg.MODEL.WEIGHTS
        if resume and not resumes:
            logger.info(
                "Nothing to resume: no checkpoint in %s. Starting from %s",
                *(self.cfg.OUTPUT_DIR, weights or "the initialisation"),
            )
        earlier = [] if resumes else check_folder_is_free(self.checkpointer, self.cfg)
        super().resume_or_load(resume)
        comm.synchronize()  # others may still read weights there
        set_aside(earlier)
        if self.start_iter > 0:
            self._seek(self.start_iter)
        loaded = bool(resumes or weights)
        for hook in self._hooks:
            if isinstance(hook, DeltaInitHook):
                hook.weights_loaded = loaded

    def _seek(self, step):
        loader = self._trainer.data_loader
        if hasattr(loader, "seek"):
            loader.seek(step)
        else:
            logger.warning("The data start anew: %s cannot begin at a step (seek)", type(loader).__name__)

    @classmethod
    def evaluate(cls, cfg, resume=False):
        """Evaluate a checkpoint on DATASETS.TEST, without training.

        Args:
            cfg (CfgNode): MODEL.WEIGHTS names the checkpoint.
            resume (bool): take the last checkpoint in OUTPUT_DIR instead, if there is one.

        Returns:
            dict: results as from ``test``.

        Raises:
            ValueError: there is no checkpoint to evaluate, or it does not fit the model.
        """
        cls.check_test_datasets(cfg)
        model = cls.build_model(cfg)
        checkpointer = IsoCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
            raise ValueError(
                "Nothing to evaluate: MODEL.WEIGHTS is empty"
                + (f" and {cfg.OUTPUT_DIR} holds no checkpoint" if resume else "")
                + ". Name a checkpoint, e.g. MODEL.WEIGHTS output/model_final.pth"
            )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        return cls.test(cfg, model)

    @classmethod
    def check_datasets(cls, cfg):
        """Find faults of the data sets now, those for tests included, not at the end of the training."""
        if not cfg.DATASETS.TRAIN:
            raise ValueError("DATASETS.TRAIN is empty: give the name of a registered data set")
        for name in cfg.DATASETS.TRAIN:
            check_kind(cfg, name)
        cls.check_test_datasets(cfg)

    @classmethod
    def check_test_datasets(cls, cfg):
        """Make sure that each of DATASETS.TEST can be evaluated."""
        for name in cfg.DATASETS.TEST:
            check_kind(cfg, name)
            with explained_missing_files():
                records = DatasetCatalog.get(name)
            if not records:
                raise ValueError(f"Test data set {name!r} (DATASETS.TEST) has no images")
            cls.build_evaluator(cfg, name)
            check_num_classes(cfg, name)

    @classmethod
    def build_model(cls, cfg):
        """The model of the config, in the channels-last layout if MODEL.CHANNELS_LAST says so."""
        model = super().build_model(cfg)
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        if in_memory(cfg, cfg.DATASETS.TRAIN):
            return build_training_batches(cfg)
        return build_training_loader(cfg, build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "classification" and in_memory(cfg, [dataset_name]):
            return build_evaluation_batches(cfg, dataset_name)
        return build_detection_test_loader(
            cfg,
            dataset_name,
            mapper=build_mapper(cfg, is_train=False),
            batch_size=cfg.TEST.BATCH_SIZE if kind in ONE_SIZE else 1,
        )

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return build_evaluator(cfg, dataset_name, output_folder)
