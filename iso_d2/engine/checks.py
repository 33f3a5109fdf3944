"""Whether data sets and model fit each other, asked before the first step."""

import contextlib
import fnmatch
import logging

from detectron2.data import MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm

from ..data.catalog import dataset_root
from ..evaluation.build import possible_metrics
from ..isometry.model import NORM_LAYERS

# meta-architecture -> node of MODEL with its NUM_CLASSES
NUM_CLASSES_KEYS = {
    "GeneralizedRCNN": "ROI_HEADS",
    "ImageClassifier": "CLASSIFIER",
    "RetinaNet": "RETINANET",
}
_DETECTION = ("coco", "coco_panoptic_seg", "lvis", "pascal_voc")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def explained_missing_files():
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


def check_kind(cfg, dataset_name):
    """Only UNetSegmentor and AlbumentationsMapper know slices, which come as arrays with a placement."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    is_unet = cfg.MODEL.META_ARCHITECTURE == "UNetSegmentor"
    if kind == "medical_segmentation" and not (is_unet and cfg.INPUT.MAPPER == "albumentations"):
        raise ValueError(
            f"Data set {dataset_name!r} is for MODEL.META_ARCHITECTURE UNetSegmentor with INPUT.MAPPER "
            f"albumentations, got {cfg.MODEL.META_ARCHITECTURE} and {cfg.INPUT.MAPPER}. "
            "For SemanticSegmentor the LGG slices are lgg_sem_seg_train and lgg_sem_seg_val."
        )
    if cfg.TEST.MIRROR_AXES and not is_unet:
        raise ValueError(
            f"TEST.MIRROR_AXES {cfg.TEST.MIRROR_AXES} is for MODEL.META_ARCHITECTURE UNetSegmentor, got "
            f"{cfg.MODEL.META_ARCHITECTURE}: set it to [] (detectors have TEST.AUG)"
        )
    if kind == "sem_seg" and is_unet and cfg.MODEL.UNET.NUM_CLASSES == 1:
        raise ValueError(
            f"Data set {dataset_name!r} is evaluated by the best of several classes: "
            "set MODEL.UNET.NUM_CLASSES to their number, background included"
        )

    others = (
        {"ImageClassifier", "UNetSegmentor"}
        if kind in _DETECTION
        else set(NUM_CLASSES_KEYS) - {"ImageClassifier"}
    )
    if (kind in _DETECTION or kind == "classification") and cfg.MODEL.META_ARCHITECTURE in others:
        raise ValueError(
            f"Data set {dataset_name!r} ({kind}) is not for MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE}: it would be evaluated without any prediction"
        )


def check_numbers(cfg):
    """Numbers that would only fail at the end of a training."""
    for key, value in (("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER), ("TEST.BATCH_SIZE", cfg.TEST.BATCH_SIZE)):
        if value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    parts, images, processes = cfg.SOLVER.ACCUMULATE, cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if parts < 1 or (parts > 1 and images % (parts * processes)):
        raise ValueError(
            f"SOLVER.ACCUMULATE must be at least 1 and divide the images of each process, got {parts} parts "
            f"of SOLVER.IMS_PER_BATCH {images} in {processes} processes. Take a multiple of "
            f"{max(parts, 1) * processes} images"
        )


def check_best(cfg, evaluators_known=True):
    """What TEST.BEST and TEST.PATIENCE ask for can be evaluated.

    Args:
        cfg (CfgNode): with its periods in iterations.
        evaluators_known (bool): those of the test sets are iso_d2's, so that their metrics are known.
    """
    best, patience, period = cfg.TEST.BEST, cfg.TEST.PATIENCE, cfg.TEST.EVAL_PERIOD
    if patience < 0 or (patience and not (best and period > 0)):
        raise ValueError(
            "TEST.PATIENCE must be 0 (never stop early) or a number of evaluations, with a metric in "
            "TEST.BEST and TEST.EVAL_PERIOD or EVAL_EPOCHS above 0, got "
            f"PATIENCE {patience}, BEST {best} and EVAL_PERIOD {period}"
        )
    if not best:
        return
    if len(best) != 2 or not all(isinstance(word, str) for word in best) or not cfg.DATASETS.TEST:
        raise ValueError(
            "TEST.BEST must be [metric, 'max' or 'min'] of the evaluation of DATASETS.TEST, got "
            f"{best} and {cfg.DATASETS.TEST}"
        )
    has_spacing = len(cfg.TEST.SEGMENTATION.SPACING) > 0
    possible = possible_metrics(cfg.DATASETS.TEST, has_spacing) if evaluators_known else ["*"]
    if not any(fnmatch.fnmatchcase(best[0], pattern) for pattern in possible):
        raise ValueError(
            f"TEST.BEST names {best[0]!r}, which no evaluation gives. There are: {', '.join(possible)}"
        )


def check_num_classes(cfg, dataset_name):
    """A label beyond the model's classes would be an index error in the middle of the training."""
    key = NUM_CLASSES_KEYS.get(cfg.MODEL.META_ARCHITECTURE)
    classes = MetadataCatalog.get(dataset_name).get("thing_classes")
    if key and classes and len(classes) > cfg.MODEL[key].NUM_CLASSES:
        raise ValueError(
            f"Data set {dataset_name!r} has {len(classes)} classes ({', '.join(classes[:5])}, ...), "
            f"the model {cfg.MODEL[key].NUM_CLASSES}: set MODEL.{key}.NUM_CLASSES {len(classes)}"
        )


def check_same_classes(cfg):
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


def warn_of_unscaled_images(cfg, model):
    if getattr(model, "standardize", None) == "image":
        return
    backbone = getattr(model, "backbone", model)
    normalizes = any(isinstance(m, (*NORM_LAYERS, FrozenBatchNorm2d)) for m in backbone.modules())
    if not normalizes and all(std == 1 for std in cfg.MODEL.PIXEL_STD):
        logger.warning(
            "MODEL.PIXEL_STD is 1 and the backbone has no normalization layer: it sees values up to 150. "
            "Usual for RGB: PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, 57.12, 57.375]."
        )
