"""Accuracy, loss and confusion matrix of an image classifier."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from matplotlib.figure import Figure

from ..files import write_atomically

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

    Raises:
        ValueError: in :meth:`process`, the model has another number of classes.
        KeyError: in :meth:`process`, inputs have no labels.
    """

    def __init__(self, dataset_name, output_folder):
        self.dataset_name = dataset_name
        self.output_folder = output_folder
        self.classes = list(MetadataCatalog.get(dataset_name).thing_classes)

    def reset(self):
        # Rows: true classes; columns: predicted ones
        self._confusion = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        self._top5 = 0
        self._loss = 0.0

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

    def evaluate(self):
        """Add up what the processes have seen.

        Returns:
            dict: in the main process ``{"classification": {"top1", "top5", "loss"}}``, accuracies in percent.
            Empty in others, and if there were no samples.
        """
        parts = comm.gather((self._confusion, self._top5, self._loss))
        if not comm.is_main_process():
            return {}
        confusion, top5, loss = (sum(values) for values in zip(*parts, strict=True))
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
        seen = {name: accuracy for name, accuracy in by_class.items() if accuracy is not None}
        worst, best = min(seen, key=seen.get), max(seen, key=seen.get)
        logger.info(
            "%s, %d images: top-1 accuracy of the classes from %.1f (%s) to %.1f (%s); all of them and the "
            "confusion matrix are in %s",
            *(self.dataset_name, total, seen[worst], worst, seen[best], best, self.output_folder),
        )
        return {"classification": metrics}


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
