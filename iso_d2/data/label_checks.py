"""Check of the labels of a semantic segmentation."""

import numpy as np


def check_labels(labels, num_classes, ignore_value, file_name):
    """Stop at a label that the model has no class for.

    Without this the loss would fail at it: with an index error on a CPU, with an assertion of the device,
    after which nothing runs there any more, on a GPU.

    Args:
        labels (ndarray): of integers or bool, of any shape.
        num_classes (int): classes of the model, 0 to num_classes - 1.
        ignore_value (int): the label of pixels that do not count.
        file_name (str): of the labels, for the message.

    Raises:
        ValueError: there is another label.
    """
    # This settles most images in a fraction of the time of what follows.
    if labels.size == 0 or (labels.max() < num_classes and labels.min() >= 0):
        return
    other = labels[(labels != ignore_value) & ((labels < 0) | (labels >= num_classes))]
    if other.size:
        values = np.unique(other).tolist()
        named = ", ".join(map(str, values[:8])) + (" and others" if len(values) > 8 else "")
        raise ValueError(
            f"{file_name} holds the labels {named}, but the model tells the classes 0 to {num_classes - 1} "
            f"apart and ignores {ignore_value}. Renumber the labels, or set MODEL.SEM_SEG_HEAD.NUM_CLASSES "
            "and IGNORE_VALUE."
        )
