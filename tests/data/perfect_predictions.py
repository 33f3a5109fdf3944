"""Feed the annotations themselves to COCOEvaluator: whatever is wired right then has an AP of 100."""

import pycocotools.mask as mask_util
import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances, polygons_to_bitmask


def average_precision(name, dataset_dicts, output_dir=None, with_masks=False):
    """Evaluate the annotations of ``dataset_dicts`` as predictions; returns {"bbox": AP, "segm": AP}."""
    evaluator = COCOEvaluator(name, distributed=False, output_dir=output_dir)
    evaluator.reset()
    for record in dataset_dicts:
        annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        size = record["height"], record["width"]
        instances = Instances(size)
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.scores = torch.ones(len(annotations))
        instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
        if with_masks:
            masks = [polygons_to_bitmask(a["segmentation"], *size) for a in annotations]
            instances.pred_masks = torch.tensor([m.tolist() for m in masks])
        evaluator.process([record], [{"instances": instances}])
    return {task: metrics["AP"] for task, metrics in evaluator.evaluate().items()}


def decode(segmentation, height, width):
    """A COCO segmentation as a mask, by pycocotools."""
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(segmentation, height, width))).astype(bool)
