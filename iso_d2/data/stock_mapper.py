"""Detectron2's own mapper, with errors that say what is wrong."""

import logging

from detectron2.data import DatasetMapper
from detectron2.utils.logger import log_first_n

from ..files import BrokenImageError, read_image
from .label_checks import check_labels
from .mappers import check_segmentation, label_range_of


class CheckedDatasetMapper(DatasetMapper):
    """Detectron2's own mapper (INPUT.MIN_SIZE_TRAIN etc.) with the errors of AlbumentationsMapper.

    Args:
        cfg (CfgNode): as Detectron2's mapper takes it; INPUT.SKIP_BROKEN counts in training.
        is_train (bool): for inference, annotations are left out.
    """

    def __init__(self, cfg, is_train=True):
        super().__init__(cfg, is_train=is_train)
        self.skip_broken = cfg.INPUT.SKIP_BROKEN and is_train
        self.label_range = label_range_of(cfg) if is_train else None

    def __call__(self, dataset_dict):
        file_name = dataset_dict["file_name"]
        if self.is_train and self.use_instance_mask:
            for annotation in dataset_dict.get("annotations", []):
                check_segmentation(annotation, file_name)
        try:
            mapped = super().__call__(dataset_dict)
        except Exception:
            # Whatever it was: if the file cannot be read a second time either, say which.
            try:
                read_image(file_name, "RGB")
            except BrokenImageError as error:
                if not self.skip_broken:
                    raise
                log_first_n(logging.WARNING, f"skipped: {error}", key="message", name=__name__)
                return None
            raise
        if self.label_range is not None and "sem_seg" in mapped:
            check_labels(mapped["sem_seg"].numpy(), *self.label_range, dataset_dict["sem_seg_file_name"])
        return mapped
