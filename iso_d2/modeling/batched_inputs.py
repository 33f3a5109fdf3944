"""What meta-architectures here check alike in the inputs of a training step."""


def check_labels_given(inputs, is_batch, key, model, kind):
    """Stop where training inputs lack their labels.

    Args:
        inputs (list[dict] or dict): Detectron2's list, or one batch.
        is_batch (bool): which of the two it is.
        key (str): of the labels.
        model (str): name of the meta-architecture, for the message.
        kind (str): of data sets that it trains on, likewise.

    Raises:
        KeyError: an input has no such key.
    """
    lacking = next((x for x in ([inputs] if is_batch else inputs) if key not in x), None)
    if lacking is not None:
        raise KeyError(
            f"{model} needs {key!r} in training, got only {', '.join(map(repr, lacking))}: "
            f"is DATASETS.TRAIN a {kind} data set?"
        )
