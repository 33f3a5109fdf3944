"""Pictures: predictions beside the ground truth, and what a mapper feeds the model.

A class has one colour, in the truth and in predictions: that of ``thing_colors`` or ``stuff_colors`` of the
data set's metadata, else that of `class_colour`.
"""

import colorsys
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils import comm
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from ..files import read_label_image, write_atomically

# Least width of the drawing of one image, in pixels
MIN_WIDTH = 480
# In a folder of pictures: what they show, see `index_pictures`
INDEX = "pictures.json"
# Okabe and Ito's colours, told apart by the colour-blind too, without black; more classes get other hues
PALETTE = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)

logger = logging.getLogger(__name__)


def class_colour(number, colours=None):
    """The colour of a class: tuple of three floats, RGB in [0, 1].

    Args:
        number (int): the class.
        colours (sequence or None): RGB of 0 to 255 of each class, as in metadata; the palette without it.
    """
    colours = PALETTE if not colours or number >= len(colours) else colours
    if number < len(colours):
        return tuple(value / 255 for value in colours[number])
    return colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.95)


def index_pictures(folder, pictures):
    """Write what the pictures of a folder show, for the page of a run.

    Args:
        folder (str or Path): with the pictures.
        pictures (list[dict]): ``file``, its name; ``title`` and ``note``, text; ``panels``, the names of its
            equally wide parts from left to right; ``error``, from 0 (all right) to 1.
    """
    write_atomically(Path(folder, INDEX), json.dumps(pictures))


class VisualPredictions(DatasetEvaluator):
    """Draws the first images of a data set: ground truth on the left, if any, predictions on the right.

    It draws the models' ``instances`` and ``sem_seg``, in the main process only. Of the truth it draws what
    the model predicts: boxes, and masks only beside masks. Each evaluation overwrites the pictures of the one
    before. ``pictures.json`` has the error of each: 1 - F1 of the instances drawn, see `count_matches`, or
    the share of wrong pixels, whichever is larger.

    Args:
        dataset_name (str): a registered data set.
        output_folder (str): for ``000_<image's name>.png``, ``001_...``; made if absent.
        num_images (int): how many to draw.
        score_threshold (float): least score of an instance that is drawn.
    """

    def __init__(self, dataset_name, output_folder, num_images, score_threshold=0.5):
        self.dataset_name = dataset_name
        self.output_folder = output_folder
        self.num_images = num_images
        self.score_threshold = score_threshold
        self.metadata = MetadataCatalog.get(dataset_name)

    def reset(self):
        self._pictures = []
        self._ground_truth = None

    def process(self, inputs, outputs):
        if not comm.is_main_process():
            return
        for image, output in zip(inputs, outputs, strict=True):
            if len(self._pictures) < self.num_images:
                self._pictures.append(self._draw(image, output))

    def evaluate(self):
        if comm.is_main_process():
            index_pictures(self.output_folder, self._pictures)
            logger.info("Drew %d test images with predictions to %s", len(self._pictures), self.output_folder)

    def _draw(self, image, output):
        """Write a picture -> its entry for `index_pictures`."""
        file_name = image["file_name"]
        pixels = read_image(file_name, "RGB")
        true = self._find_ground_truth(file_name)
        panels = {name: _enlarged(pixels, self.metadata) for name in ("truth", "prediction")}
        notes, errors = [], []
        # a semantic map cannot be drawn without class names
        if "sem_seg" in output and self.metadata.get("stuff_classes"):
            labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
            panels["prediction"].draw_labels(labels)
            if "sem_seg_file_name" in true:
                truth = read_label_image(true["sem_seg_file_name"])
                panels["truth"].draw_labels(truth)
                counted = truth != self.metadata.get("ignore_label", 255)
                errors.append(float((labels != truth)[counted].mean()) if counted.any() else 0.0)
                notes.append(f"{100 * errors[-1]:.1f} % of the pixels wrong")
        if "instances" in output:
            found = output["instances"].to("cpu")
            found = found[found.scores >= self.score_threshold]
            panels["prediction"].draw_predictions(found)
            if "annotations" in true:
                annotations = [a for a in true["annotations"] if not a.get("iscrowd", 0)]
                panels["truth"].draw_annotations(annotations, found)
                right = count_matches(*_boxes_and_classes(annotations), found)
                errors.append(1 - 2 * right / (len(annotations) + len(found)) if annotations or found else 0)
                missed, extra = len(annotations) - right, len(found) - right
                notes.append(f"{right} of {len(annotations)} found, {missed} missed, {extra} extra")
        if not errors:
            del panels["truth"]

        os.makedirs(self.output_folder, exist_ok=True)
        stem = os.path.splitext(os.path.basename(file_name))[0]
        name = f"{len(self._pictures):03d}_{stem}.png"
        drawn = [panel.output.get_image() for panel in panels.values()]
        Image.fromarray(np.concatenate(drawn, axis=1)).save(os.path.join(self.output_folder, name))
        entry = {"file": name, "title": stem, "note": "; ".join(notes), "panels": list(panels)}
        return {**entry, "error": max(errors)} if errors else entry

    def _find_ground_truth(self, file_name):
        if self._ground_truth is None:
            records = DatasetCatalog.get(self.dataset_name)
            self._ground_truth = {record["file_name"]: record for record in records}
        return self._ground_truth[file_name]


def count_matches(boxes, classes, found, iou=0.5):
    """How many objects are found: pairs of one class whose boxes overlap, the best score chooses first.

    Args:
        boxes (Boxes), classes (list[int]): the truth, N objects.
        found (Instances): M predictions with pred_boxes, pred_classes and scores.
        iou (float): least intersection over union of a pair.
    """
    overlaps = pairwise_iou(boxes, found.pred_boxes)  # (N, M)
    overlaps[torch.tensor(classes)[:, None] != found.pred_classes] = 0
    right = 0
    for column in found.scores.argsort(descending=True).tolist() if classes else ():
        best, row = overlaps[:, column].max(dim=0)
        if best >= iou:
            overlaps[row] = 0
            right += 1
    return right


def _boxes_and_classes(annotations):
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return Boxes(np.array(boxes, np.float32).reshape(-1, 4)), [a["category_id"] for a in annotations]


def draw_detections(pixels, found, metadata):
    """The image with its detections, each class in one colour.

    Args:
        pixels (ndarray): (H, W, 3), RGB.
        found (Instances): on the CPU; all are drawn.
        metadata: of the data set.

    Returns:
        ndarray: (H', W', 3), RGB; enlarged by a whole number to a width of 480 or more.
    """
    panel = _enlarged(pixels, metadata)
    panel.draw_predictions(found)
    return panel.output.get_image()


def _enlarged(pixels, metadata):
    # small images are drawn larger, since text keeps its size and would hide them
    return _Panel(pixels, metadata, max(1, -(-MIN_WIDTH // pixels.shape[1])))


class _Panel(Visualizer):
    """Detectron2's drawing of one image, with one colour a class."""

    def __init__(self, pixels, metadata, scale=1):
        super().__init__(pixels, metadata, scale)
        stuff = metadata.get("stuff_classes") or []
        colours = [class_colour(i, metadata.get("stuff_colors")) for i in range(len(stuff))]
        # what draw_sem_seg reads; the metadata themselves stay
        self._labels = SimpleNamespace(
            stuff_classes=stuff, stuff_colors=[[255 * value for value in colour] for colour in colours]
        )

    def draw_labels(self, labels, alpha=0.5):
        """A label map, ndarray (H, W)."""
        self.metadata, metadata = self._labels, self.metadata
        self.draw_sem_seg(labels, alpha=alpha)
        self.metadata = metadata

    def draw_objects(self, classes, scores=None, **what):
        """Boxes, masks and keypoints, as `overlay_instances` takes them, of classes (list[int])."""
        names = self.metadata.get("thing_classes")
        labels = [names[c] if names else str(c) for c in classes]
        if scores is not None:
            labels = [f"{label} {100 * score:.0f}%" for label, score in zip(labels, scores, strict=True)]
        colours = [class_colour(c, self.metadata.get("thing_colors")) for c in classes]
        self.overlay_instances(labels=labels, assigned_colors=colours, **what)

    def draw_predictions(self, found):
        """Instances on the CPU."""
        masks = found.pred_masks.numpy() if found.has("pred_masks") else None
        keypoints = found.pred_keypoints if found.has("pred_keypoints") else None
        what = {"boxes": found.pred_boxes, "masks": masks, "keypoints": keypoints}
        self.draw_objects(found.pred_classes.tolist(), found.scores.tolist(), **what)

    def draw_annotations(self, annotations, found):
        """Annotations of a dataset dict, with what the predictions `found` have."""
        boxes, classes = _boxes_and_classes(annotations)
        masks = keypoints = None
        if found.has("pred_masks") and all("segmentation" in a for a in annotations):
            masks = [a["segmentation"] for a in annotations]
        if found.has("pred_keypoints") and all("keypoints" in a for a in annotations):
            keypoints = np.array([a["keypoints"] for a in annotations]).reshape(len(annotations), -1, 3)
        self.draw_objects(classes, boxes=boxes, masks=masks, keypoints=keypoints)


def draw_model_input(mapped, metadata, image_format):
    """Draw one mapped dataset dict: the image as the model gets it, with its targets.

    Args:
        mapped (dict): a mapper's result: ``image`` (C, H, W), and ``instances`` or ``sem_seg`` if any.
        metadata (Metadata): of the data set, for class names.
        image_format (str): INPUT.FORMAT.

    Returns:
        ndarray: uint8 RGB, (H, W, 3).
    """
    pixels = mapped["image"].permute(1, 2, 0).numpy()  # (C, H, W) -> (H, W, C)
    panel = _Panel(convert_image_to_rgb(pixels, image_format), metadata)
    if "sem_seg" in mapped and metadata.get("stuff_classes"):
        panel.draw_labels(mapped["sem_seg"].numpy(), alpha=0.4)
    if "instances" in mapped:
        fields = mapped["instances"].get_fields()
        # Detectron2 draws polygons and tensors, not its own BitMasks
        masks = getattr(fields.get("gt_masks"), "tensor", fields.get("gt_masks"))
        panel.draw_objects(fields["gt_classes"].tolist(), boxes=fields["gt_boxes"], masks=masks)
    return panel.output.get_image()
