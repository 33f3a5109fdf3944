"""The inputs of the meta-architectures here, in either form, as tensors; and the check of their labels."""

from collections.abc import Mapping

import torch

# CUDA's assertions take no longer one
LONGEST_MESSAGE = 255


def as_batch(inputs, key, model, kind, training):
    """Images and labels of a step.

    Args:
        inputs (list[dict] or dict): Detectron2's list, with an ``image`` (C, H, W) each, of one size in all,
            and in training a label; or one batch of ``images`` (B, C, H, W) and in training ``labels``.
        key (str): of the labels in the list; values may be numbers or tensors.
        model (str): name of the meta-architecture, for messages.
        kind (str): of data sets that it trains on, likewise.
        training (bool): whether labels are needed.

    Returns:
        tuple[Tensor, Tensor or None]: images and, in training, labels, where they were.

    Raises:
        KeyError: no labels in training.
        ValueError: images or labels of several sizes.
    """
    is_batch = isinstance(inputs, Mapping)
    key = "labels" if is_batch else key
    lacking = [x for x in ([inputs] if is_batch else inputs) if key not in x] if training else []
    if lacking:
        raise KeyError(
            f"{model} needs {key!r} in training, got only {', '.join(map(repr, lacking[0]))}: "
            f"is DATASETS.TRAIN a {kind} data set?"
        )
    if is_batch:
        return inputs["images"], inputs["labels"] if training else None
    return _stack(inputs, "image", model), _stack(inputs, key, model) if training else None


def _stack(inputs, key, model):
    values = [torch.as_tensor(x[key]) for x in inputs]
    sizes = sorted({tuple(value.shape) for value in values})
    if len(sizes) > 1:
        raise ValueError(
            f"{model} takes images of one size in a batch, got {key!r} of {', '.join(map(str, sizes))}: "
            "resize or crop them to one in INPUT.ALBUMENTATIONS"
        )
    return torch.stack(values)


def check_label_range(labels, num_classes, accepted, advice=""):
    """Stop at a label that the model has no class for.

    Labels on a GPU are checked there, because to look at them here would make every step wait for the GPU.
    A wrong one prints the message and stops the process with CUDA's "device-side assert triggered". The
    data sets of this package have been checked before that (see iso_d2.data.labels).

    Args:
        labels (Tensor): of integers, those to be ignored set to 0.
        num_classes (int): labels are 0 to num_classes - 1.
        accepted (str): what labels may be and the config key that decides on it, for the message.
        advice (str): what to do; ends the message.

    Raises:
        ValueError: there is another label, on the CPU.
    """
    if labels.device.type != "cpu":
        within = ((labels >= 0) & (labels < num_classes)).all()
        torch._assert_async(within, f"Labels must be {accepted}{advice}"[:LONGEST_MESSAGE])
        return
    low, high = (value.item() for value in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(f"Labels must be {accepted}, got {low if low < 0 else high}{advice}")
