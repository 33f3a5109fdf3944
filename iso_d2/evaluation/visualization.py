"""Pictures: predictions beside the ground truth, and what a mapper feeds the model."""

import logging
import os

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.visualizer import Visualizer
from PIL import Image

# Least width of the drawing of one image, in pixels
MIN_WIDTH = 480

logger = logging.getLogger(__name__)


class VisualPredictions(DatasetEvaluator):
    """Draws the first images of a data set: ground truth on the left, if any, predictions on the right.

    It draws the models' ``instances`` and ``sem_seg``, in the main process only, and measures nothing. Each
    evaluation overwrites the pictures of the one before.

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
        self._drawn = 0
        self._ground_truth = None

    def process(self, inputs, outputs):
        if not comm.is_main_process():
            return
        for image, output in zip(inputs, outputs, strict=True):
            if self._drawn < self.num_images:
                self._draw(image, output)
                self._drawn += 1

    def evaluate(self):
        if comm.is_main_process():
            logger.info("Drew %d test images with predictions to %s", self._drawn, self.output_folder)

    def _draw(self, image, output):
        file_name = image["file_name"]
        pixels = read_image(file_name, "RGB")
        # a semantic map cannot be drawn without class names
        sem_seg = "sem_seg" in output and bool(self.metadata.get("stuff_classes"))
        kinds = {"annotations": "instances" in output, "sem_seg_file_name": sem_seg}
        truth = {k: v for k, v in self._find_ground_truth(file_name).items() if kinds.get(k)}
        # small images are drawn larger, since text keeps its size and would hide them
        scale = max(1, -(-MIN_WIDTH // pixels.shape[1]))
        panels = []
        if truth:
            panels.append(Visualizer(pixels, self.metadata, scale).draw_dataset_dict(truth).get_image())
        visualizer = Visualizer(pixels, self.metadata, scale)
        if sem_seg:
            visualizer.draw_sem_seg(output["sem_seg"].argmax(dim=0).cpu(), alpha=0.5)
        if "instances" in output:
            instances = output["instances"].to("cpu")
            visualizer.draw_instance_predictions(instances[instances.scores >= self.score_threshold])
        panels.append(visualizer.output.get_image())

        os.makedirs(self.output_folder, exist_ok=True)
        stem = os.path.splitext(os.path.basename(file_name))[0]
        path = os.path.join(self.output_folder, f"{self._drawn:03d}_{stem}.png")
        Image.fromarray(np.concatenate(panels, axis=1)).save(path)

    def _find_ground_truth(self, file_name):
        if self._ground_truth is None:
            records = DatasetCatalog.get(self.dataset_name)
            self._ground_truth = {record["file_name"]: record for record in records}
        return self._ground_truth[file_name]


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
    visualizer = Visualizer(convert_image_to_rgb(pixels, image_format), metadata)
    if "sem_seg" in mapped and metadata.get("stuff_classes"):
        visualizer.draw_sem_seg(mapped["sem_seg"], alpha=0.4)
    if "instances" in mapped:
        fields = mapped["instances"].get_fields()
        names = metadata.get("thing_classes")
        visualizer.overlay_instances(
            boxes=fields["gt_boxes"],
            labels=[names[c] if names else str(c) for c in fields["gt_classes"].tolist()],
            # Detectron2 draws polygons and tensors, not its own BitMasks
            masks=getattr(fields.get("gt_masks"), "tensor", fields.get("gt_masks")),
        )
    return visualizer.output.get_image()
