"""Detectron2's DefaultTrainer with iso_d2's hooks, optimizer, mappers, evaluators and checkpointer."""

import contextlib
import logging
import weakref

import torch
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data.batches import build_evaluation_batches, build_training_batches, in_memory
from ..data.catalog import dataset_root
from ..data.mappers import AlbumentationsMapper, CheckedDatasetMapper
from ..evaluation import build_evaluator
from ..isometry.model import NORM_LAYERS
from .checkpoint import IsoCheckpointer
from .choices import epochs_to_iterations, penalty_coefficient, penalty_mode
from .compilation import CompileHook
from .hooks import DeltaInitHook, IsometryHook, OrthogonalityLossHook, SignalHook, WhiteningHook
from .mixed_precision import inner_trainer
from .optimizer import build_optimizer

# meta-architecture -> node of MODEL with its NUM_CLASSES
NUM_CLASSES_KEYS = {
    "GeneralizedRCNN": "ROI_HEADS",
    "ImageClassifier": "CLASSIFIER",
    "RetinaNet": "RETINANET",
}
# Types of data sets whose mapped images are all of one size
ONE_SIZE = ("classification", "medical_segmentation")
MAPPERS = {"albumentations": AlbumentationsMapper, "detectron2": CheckedDatasetMapper}

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
        cfg = epochs_to_iterations(cfg)

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        with _explained_missing_files():
            data_loader = self.build_train_loader(cfg)
        for name in cfg.DATASETS.TRAIN:
            _check_num_classes(cfg, name)
        _check_same_classes(cfg)
        _warn_of_unscaled_images(cfg, model)

        on_gpu = next(model.parameters()).is_cuda
        model = create_ddp_model(
            model, broadcast_buffers=False, device_ids=[comm.get_local_rank()] if on_gpu else None
        )
        self._trainer = make_inner_trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = IsoCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self):
        """The hooks that the config asks for, then Detectron2's, of which the writer must come last."""
        iso, hooks = self.cfg.ISO, []
        if iso.DELTA_INIT.ENABLED:
            hooks.append(DeltaInitHook(iso.DELTA_INIT.INCLUDE))
        coeff = penalty_coefficient(self.cfg)
        if coeff != 0:
            keys = ("INCLUDE", "EXCLUDE", "PERIOD", "LOG_PERIOD", "FRACTION", "BOUND")
            options = {key.lower(): iso.ORTHO[key] for key in keys}
            hooks.append(OrthogonalityLossHook(coeff, penalty_mode(self.cfg), **options))
        if iso.ANALYSIS.PERIOD > 0:
            hooks.append(IsometryHook(iso.ANALYSIS.PERIOD))
        if self.cfg.MODEL.COMPILE:
            hooks.append(CompileHook())
        return [*hooks, WhiteningHook(), SignalHook(), *super().build_hooks()]

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
        super().resume_or_load(resume)
        loaded = bool(resumes or weights)
        for hook in self._hooks:
            if isinstance(hook, DeltaInitHook):
                hook.weights_loaded = loaded

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
            _check_kind(cfg, name)
        cls.check_test_datasets(cfg)

    @classmethod
    def check_test_datasets(cls, cfg):
        """Make sure that each of DATASETS.TEST can be evaluated."""
        for name in cfg.DATASETS.TEST:
            _check_kind(cfg, name)
            with _explained_missing_files():
                records = DatasetCatalog.get(name)
            if not records:
                raise ValueError(f"Test data set {name!r} (DATASETS.TEST) has no images")
            cls.build_evaluator(cfg, name)
            _check_num_classes(cfg, name)

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
        return build_detection_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))

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


def build_mapper(cfg, is_train):
    """The mapper of INPUT.MAPPER.

    Raises:
        ValueError: there is none of that name.
    """
    if cfg.INPUT.MAPPER not in MAPPERS:
        raise ValueError(f"INPUT.MAPPER must be one of {', '.join(MAPPERS)}, got {cfg.INPUT.MAPPER!r}")
    return MAPPERS[cfg.INPUT.MAPPER](cfg, is_train=is_train)


@contextlib.contextmanager
def _explained_missing_files():
    """Say what to do when the error of a data set only names its missing file."""
    try:
        yield
    except FileNotFoundError as error:
        if error.errno is None:  # not the system's own message, but one that says what to do
            raise
        raise FileNotFoundError(
            f"A data set needs {error.filename}, which does not exist. The data set root is "
            f"{dataset_root().absolute()}; set DETECTRON2_DATASETS to the folder that holds it."
        ) from error


def _check_kind(cfg, dataset_name):
    """Only UNetSegmentor and AlbumentationsMapper know slices, which come as arrays with a placement."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    is_unet = cfg.MODEL.META_ARCHITECTURE == "UNetSegmentor"
    if kind == "medical_segmentation" and not (is_unet and cfg.INPUT.MAPPER == "albumentations"):
        raise ValueError(
            f"Data set {dataset_name!r} is for MODEL.META_ARCHITECTURE UNetSegmentor with INPUT.MAPPER "
            f"albumentations, got {cfg.MODEL.META_ARCHITECTURE} and {cfg.INPUT.MAPPER}. "
            "For SemanticSegmentor the LGG slices are lgg_sem_seg_train and lgg_sem_seg_val."
        )
    if kind == "sem_seg" and is_unet and cfg.MODEL.UNET.NUM_CLASSES == 1:
        raise ValueError(
            f"Data set {dataset_name!r} is evaluated by the best of several classes: "
            "set MODEL.UNET.NUM_CLASSES to their number, background included"
        )


def _check_num_classes(cfg, dataset_name):
    """A label beyond the model's classes would be an index error in the middle of the training."""
    key = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    classes = MetadataCatalog.get(dataset_name).get("thing_classes")
    if key and classes and len(classes) > cfg.MODEL[key].NUM_CLASSES:
        raise ValueError(
            f"Data set {dataset_name!r} has {len(classes)} classes ({', '.join(classes[:5])}, ...), "
            f"the model {cfg.MODEL[key].NUM_CLASSES}: set MODEL.{key}.NUM_CLASSES {len(classes)}"
        )


def _check_same_classes(cfg):
    """If a folder of a class is missing in one data set, all later labels are shifted."""
    first = cfg.DATASETS.TRAIN[0]
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        same = metadata.get("thing_classes") == MetadataCatalog.get(first).get("thing_classes")
        if metadata.get("evaluator_type") == "classification" and not same:
            raise ValueError(
                f"Data set {name!r} has other classes than {first!r}: its labels mean something else. "
                "If it lacks some, register it with the names of all: register_image_folder(..., classes=...)"
            )


def _warn_of_unscaled_images(cfg, model):
    if getattr(model, "standardize", None) == "image":
        return
    backbone = getattr(model, "backbone", model)
    normalizes = any(isinstance(m, (*NORM_LAYERS, FrozenBatchNorm2d)) for m in backbone.modules())
    if not normalizes and all(std == 1 for std in cfg.MODEL.PIXEL_STD):
        logger.warning(
            "MODEL.PIXEL_STD is 1 and the backbone has no normalization layer: it sees values up to 150. "
            "Usual for RGB: PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, 57.12, 57.375]."
        )
