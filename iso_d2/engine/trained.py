"""Trained networks that come with iso_d2, by name: `load`, and what they say of an image."""

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from ..evaluation import draw_overlay
from ..evaluation.visualization import draw_detections
from ..files import read_image
from .predictor import Predictor, by_class, rgb_array
from .setup import load_config

# Of each network here: NAME.safetensors, NAME.yaml with the config of its training, NAME.json, its model card
FOLDER = Path(__file__).parents[1] / "weights"
# Pictures of a classifier's input are drawn with sides of at least so many pixels.
DRAWN = 256


def list_models():
    """list[str]: the names that :func:`load` takes."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load(name, device=None):
    """A trained network that comes with iso_d2.

        network = iso_d2.load("isounet-lgg-narrow")
        prediction = network("slice.tif")
        prediction.draw().save("prediction.png")

    Args:
        name (str): one of :func:`list_models`.
        device (str, torch.device or None): to run it on. None: a GPU if there is one.

    Returns:
        TrainedNetwork

    Raises:
        ValueError: there is no such network; the message names similar ones. Or its file is damaged.
    """
    cfg = trained_config(name, ["MODEL.DEVICE", str(device)] if device else ())
    return TrainedNetwork(name, cfg, _card(name))


def trained_config(name, opts=()):
    """CfgNode: that of a network's training, with MODEL.WEIGHTS, on a GPU if there is one; changed by `opts`.

    Args:
        name (str): of the network.
        opts (sequence): keys and values in turn.

    Raises:
        ValueError: as in :func:`load`.
    """
    weights = FOLDER / f"{_known(name)}.safetensors"
    if hashlib.sha256(weights.read_bytes()).hexdigest() != _card(name)["sha256"]:
        raise ValueError(f"{weights} is damaged: its checksum is not its model card's. Reinstall iso_d2.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = ["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", device, *opts]
    return load_config(FOLDER / f"{name}.yaml", given)


def _card(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def _known(name):
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3)
        raise ValueError(
            f"no trained network {name!r}. There are {', '.join(known)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return name


class TrainedNetwork:
    """A network with its config; called with images, it says what it sees.

    Attributes:
        name (str)
        cfg (CfgNode): of its training, and MODEL.WEIGHTS.
        model (nn.Module): in inference mode, with gains and scales as they were trained.
        card (dict): the model card: data and its licence, training, metrics, checksum, what it is for.
    """

    def __init__(self, name, cfg, card):
        self.name, self.cfg, self.card = name, cfg, card
        self._predictor = Predictor(cfg, fold=False)
        self.model = self._predictor.model
        self._metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])

    def __call__(self, images):
        """What the network sees in an image, or in several.

        Args:
            images: one or a list or tuple of: a path; a PIL image; an RGB array (H, W, 3) or a grey one
                (H, W); an RGB tensor (3, H, W). Arrays and tensors are uint8, or floats from 0 to 1. An array
                or a tensor with one dimension more holds several.

        Returns:
            Prediction or list[Prediction]

        Raises:
            BrokenImageError: a file cannot be read.
            ValueError: an array of another shape or type, or with values out of range.
        """
        is_batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
        if is_batch or isinstance(images, (list, tuple)):
            return [self._predict(image) for image in images]
        return self._predict(images)

    def _predict(self, image):
        is_file = isinstance(image, (str, Path))
        pixels = read_image(image, "RGB") if is_file else rgb_array(image).transpose(1, 2, 0)
        output = self._predictor(pixels.transpose(2, 0, 1))
        found = {"instances": output.get("instances"), "image": pixels, "metadata": self._metadata}
        if "sem_seg" in output:
            found["probabilities"] = probabilities = output["sem_seg"].cpu()
            one = len(probabilities) == 1
            threshold = self.cfg.TEST.SEGMENTATION.THRESHOLD
            found["mask"] = (probabilities[0] >= threshold if one else probabilities.argmax(0)).numpy()
        if "scores" in output:
            found["scores"] = by_class(output["scores"].tolist(), self._metadata)
        return Prediction(**found)

    def __repr__(self):
        return f"TrainedNetwork({self.name!r}): {self.card['what']}"


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """What a network says of one image; what it does not say is None.

    Attributes:
        image (ndarray): uint8 RGB, (H, W, 3).
        metadata (Metadata): names of the classes.
        instances (Instances): boxes in pixels of the image, scores, classes, perhaps masks; on the CPU.
        mask (ndarray): (H, W), bool for a network of one class, else int64, the class of each pixel.
        probabilities (Tensor): float32, (K, H, W): of the mask.
        scores (dict[str, float]): of each class, the largest first; their sum is 1.
    """

    image: np.ndarray
    metadata: object
    instances: Instances | None = None
    mask: np.ndarray | None = None
    probabilities: torch.Tensor | None = None
    scores: dict | None = None

    def draw(self, threshold=0.5):
        """The image with boxes of at least a score, with the outline of the mask, or with its best classes.

        Returns:
            PIL.Image.Image: RGB. That of a mask is four times as large, that of boxes is at least 480 pixels
            wide, that of a classifier has 256 pixels a side or more.
        """
        if self.mask is not None:
            return Image.fromarray(draw_overlay(self.image, None, self.mask > 0))
        if self.instances is not None:
            shown = self.instances[self.instances.scores >= threshold]
            return Image.fromarray(draw_detections(self.image, shown, self.metadata))
        times = -(-DRAWN // min(self.image.shape[:2]))
        visualizer = Visualizer(self.image.repeat(times, 0).repeat(times, 1), self.metadata)
        best = list(self.scores.items())[:3]
        text = "\n".join(f"{name} {100 * score:.0f} %" for name, score in best)
        drawn = visualizer.draw_text(text, (4, 4), font_size=14, horizontal_alignment="left")
        return Image.fromarray(drawn.get_image())

    def __repr__(self):
        height, width = self.image.shape[:2]
        if self.scores is not None:
            said = ", ".join(f"{name} {score:.2f}" for name, score in list(self.scores.items())[:3])
        elif self.mask is not None:
            said = f"{int((self.mask > 0).sum())} foreground pixels"
        else:
            said = f"{len(self.instances)} instances"
        return f"Prediction({height}x{width} pixels: {said})"
