"""Accuracy, loss and confusion matrix of an image classifier."""

import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from matplotlib.figure import Figure
from PIL import Image

from ..files import write_atomically
from .visualization import index_pictures

logger = logging.getLogger(__name__)

# Replaces a probability of 0, which float32 gives for a sure error; its loss is 87.3
SMALLEST = torch.finfo(torch.float32).tiny
# With more classes, names and numbers in the confusion matrix are not readable
READABLE_CLASSES = 20


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy, mean cross entropy, accuracy of each class, confusion matrix.

    The sums of all processes are added, so every sample counts once if only one process has it. Inputs and
    outputs are those of ``ImageClassifier`` in both forms: lists of dicts with a ``label`` and with
    ``scores`` (C,), or one batch with ``labels`` (B,) and ``scores`` (B, C).

    Args:
        dataset_name (str): a registered data set, whose metadata have ``thing_classes``.
        output_folder (str): for ``classification.json`` and ``confusion_matrix.png``; made if absent.
        pictures_folder (str or None): for ``000.png`` and so on: half of them the images whose true class got
            the least probability, half the first ones. Each evaluation overwrites those of the one before.
        num_pictures (int): how many.
        image_format (str): of the images, RGB, BGR or L.

    Raises:
        ValueError: in :meth:`process`, the model has another number of classes.
        KeyError: in :meth:`process`, inputs have no labels.
    """

    def __init__(self, dataset_name, output_folder, pictures_folder=None, num_pictures=0, image_format="RGB"):
        self.dataset_name = dataset_name
        self.output_folder = output_folder
        self.pictures_folder = pictures_folder
        self.num_pictures = num_pictures if pictures_folder else 0
        self.image_format = image_format
        self.classes = list(MetadataCatalog.get(dataset_name).thing_classes)

    def reset(self):
        # Rows: true classes; columns: predicted ones
        self._confusion = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        self._top5 = 0
        self._loss = 0.0
        self._worst, self._first = [], []  # (probability of the true class, label, scores, image)

    def process(self, inputs, outputs):
        if isinstance(inputs, Mapping):
            labels, scores = inputs["labels"].cpu(), outputs["scores"].cpu()
        else:
            labels = torch.tensor([x["label"] for x in inputs])
            scores = torch.stack([x["scores"] for x in outputs]).cpu()
        number = len(self.classes)
        if scores.shape[1] != number:
            raise ValueError(
                f"Data set {self.dataset_name!r} has {number} classes, the model {scores.shape[1]}: "
                f"set MODEL.CLASSIFIER.NUM_CLASSES {number}"
            )
        cells = torch.bincount(labels * number + scores.argmax(dim=1), minlength=number**2)
        self._confusion += cells.view(number, number)
        top5 = scores.topk(min(5, number), dim=1).indices
        self._top5 += (top5 == labels[:, None]).sum().item()
        true_scores = scores.double().gather(1, labels[:, None])
        self._loss -= true_scores.clamp(min=SMALLEST).log().sum().item()
        if self.num_pictures:
            images = inputs["images"] if isinstance(inputs, Mapping) else [x["image"] for x in inputs]
            self._keep(true_scores.flatten().tolist(), labels.tolist(), scores, images)

    def _keep(self, true_scores, labels, scores, images):
        worst = self.num_pictures // 2
        first = self.num_pictures - worst - len(self._first)
        ranked = sorted(range(len(labels)), key=true_scores.__getitem__)

        def kept(i):
            return true_scores[i], labels[i], scores[i].clone(), images[i].cpu().clone()

        self._first += [kept(i) for i in range(len(labels))[: max(0, first)]]
        self._worst = sorted([*self._worst, *map(kept, ranked[:worst])], key=lambda x: x[0])[:worst]

    def evaluate(self):
        """Add up what the processes have seen.

        Returns:
            dict: in the main process ``{"classification": {"top1", "top5", "loss"}}``, accuracies in percent.
            Empty in others, and if there were no samples.
        """
        parts = comm.gather((self._confusion, self._top5, self._loss, self._worst, self._first))
        if not comm.is_main_process():
            return {}
        *sums, worst, first = zip(*parts, strict=True)
        confusion, top5, loss = map(sum, sums)
        total = confusion.sum().item()
        if total == 0:
            logger.warning("No samples of %s were evaluated", self.dataset_name)
            return {}
        metrics = {
            "top1": 100 * confusion.trace().item() / total,
            "top5": 100 * top5 / total,
            "loss": loss / total,
        }
        rows = zip(self.classes, confusion.diag().tolist(), confusion.sum(dim=1).tolist(), strict=True)
        by_class = {name: 100 * right / count if count else None for name, right, count in rows}

        content = {**metrics, "num_images": total, "class_accuracy": by_class}
        content["confusion_matrix"] = confusion.tolist()
        folder = Path(self.output_folder)
        write_atomically(folder / "classification.json", json.dumps(content))
        draw_confusion_matrix(confusion, self.classes, folder / "confusion_matrix.png")
        if self.num_pictures:
            self._draw(*(list(itertools.chain(*lists)) for lists in (worst, first)))
        seen = {name: accuracy for name, accuracy in by_class.items() if accuracy is not None}
        worst, best = min(seen, key=seen.get), max(seen, key=seen.get)
        logger.info(
            "%s, %d images: top-1 accuracy of the classes from %.1f (%s) to %.1f (%s); all of them and the "
            "confusion matrix are in %s",
            *(self.dataset_name, total, seen[worst], worst, seen[best], best, self.output_folder),
        )
        return {"classification": metrics}

    def _draw(self, worst, first):
        number = self.num_pictures // 2
        kept = sorted(worst, key=lambda x: x[0])[:number] + first[: self.num_pictures - number]
        folder, pictures = Path(self.pictures_folder), []
        folder.mkdir(parents=True, exist_ok=True)
        for i, (true_score, label, scores, image) in enumerate(kept):
            name, pixels = f"{i:03d}.png", image.permute(1, 2, 0).byte().numpy()  # (C, H, W) -> (H, W, C)
            Image.fromarray(convert_image_to_rgb(pixels, self.image_format)).save(folder / name)
            found = scores.argmax().item()
            note = f"predicted {self.classes[found]}, {100 * scores[found]:.1f} %"
            if found != label:
                note += f"; true class {100 * true_score:.1f} %"
            title = f"{self.classes[label]} ({'one of the worst' if i < number else 'one of the first'})"
            entry = {"file": name, "title": title, "note": note, "panels": ["image"]}
            pictures.append({**entry, "error": 1 - true_score, "wrong": found != label})
        index_pictures(folder, pictures)


def draw_confusion_matrix(confusion, classes, path):
    """Draw a confusion matrix, each row as shares of its class, into a PNG file.

    Args:
        confusion (Tensor): counts, (C, C); rows are true classes, columns predicted ones.
        classes (sequence of str): C names. Up to 20 are written, and so are the shares in percent.
        path (str or Path): the file.
    """
    shares = 100 * confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, label="% of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(classes) <= READABLE_CLASSES:
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        for row, values in enumerate(shares.tolist()):
            for column, share in enumerate(values):
                colour = "white" if share > 50 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour)
    figure.savefig(path, dpi=100)
