"""Loading of checkpoints that does not let a wrong one go unnoticed."""

import os

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import CNNBlockBase
from torch import nn

from ..isometry.scaled import gains_in_state_dicts

# A detector has no place for these weights of an ISONet pretrained for classification, and needs none.
CLASSIFIER_KEYS = ("linear.weight", "linear.bias")


class IsoCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which refuses a checkpoint that does not fit the model's backbone.

    A checkpoint fits if it holds, with the same names and shapes, all weights (tensors of two or more
    dimensions) of at least one block of the backbone other than the stem. Single tensors do not count: some
    of ResNet-18 have the names and shapes of others in ResNet-50. In a backbone without Detectron2's blocks
    each layer counts as a block, and a model without ``backbone`` counts as a whole. One warning lists
    everything else that did not match, except the classifier of pretrained weights, which a detector has no
    use for.
    """

    def load(self, path, *args, **kwargs):
        """As in :class:`DetectionCheckpointer`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or does not fit the model's backbone at all.
        """
        if path and "://" not in path and not os.path.isfile(path.split("?")[0]):
            raise FileNotFoundError(
                f"Checkpoint {os.path.abspath(path)!r} does not exist. Correct MODEL.WEIGHTS, or set it to ''"
                " to start from scratch; when resuming, see the file last_checkpoint in OUTPUT_DIR."
            )
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # after an error Detectron2 leaves it set, and then refuses to load anything else
            self._parsed_url_during_load = None

    def _load_file(self, filename):
        try:
            checkpoint = super()._load_file(filename)
            if not isinstance(checkpoint["model"], dict):
                raise TypeError(f"it holds a {type(checkpoint['model']).__name__}, not a state dict")
        except Exception as error:
            raise ValueError(
                f"Checkpoint {filename!r} cannot be read: it is truncated or no checkpoint of PyTorch or "
                f"Detectron2. Copy it again, or name another file. The cause: {error}"
            ) from error
        return checkpoint

    def _load_model(self, checkpoint):
        # so that the heuristics find the places of gains in a model that has none yet
        with gains_in_state_dicts():
            incompatible = super()._load_model(checkpoint)
        unexpected = incompatible.unexpected_keys
        if checkpoint.get("matching_heuristics") and set(CLASSIFIER_KEYS) <= set(unexpected):
            unexpected[:] = [key for key in unexpected if key not in (*CLASSIFIER_KEYS, "linear.gain")]
            self.logger.info("The checkpoint's classifier (%s) is left out", ", ".join(CLASSIFIER_KEYS))
        not_loaded = {*incompatible.missing_keys, *(key for key, _, _ in incompatible.incorrect_shapes)}
        units = _units(self.model)
        if units and all(unit & not_loaded for unit in units):
            raise ValueError(
                f"Checkpoint {self._parsed_url_during_load.geturl()!r} does not fit the model's backbone: "
                f"none of its {len(units)} blocks found all its weights by name and shape. Is it of another "
                "depth, or of another network? If only the first part of the names is lacking, append "
                "?matching_heuristics=True to MODEL.WEIGHTS; '' starts from scratch. "
                + _describe(incompatible)
            )
        return incompatible

    def _log_incompatible_keys(self, incompatible):
        if any(incompatible):
            self.logger.warning("The checkpoint fits the model only in part. %s", _describe(incompatible))


def _units(model):
    """list[set[str]]: the names of the weights of each block of the backbone, or else of each layer."""
    backbone = getattr(model, "backbone", None)
    prefix, root = ("backbone", backbone) if isinstance(backbone, nn.Module) else ("", model)
    modules = dict(root.named_modules(prefix=prefix))
    blocks = {
        name: module
        for name, module in modules.items()
        if isinstance(module, CNNBlockBase) and not name.endswith("stem")
    }
    units = (blocks or {n: m for n, m in modules.items() if not list(m.children())}).items()
    weights = ({n for n, p in module.named_parameters(name) if p.ndim >= 2} for name, module in units)
    return [unit for unit in weights if unit]


def _describe(incompatible):
    reshaped = {
        key: f"{key} ({found} in the checkpoint, {wanted} in the model)"
        for key, found, wanted in incompatible.incorrect_shapes
    }
    parts = {
        "missing in the checkpoint": [k for k in incompatible.missing_keys if k not in reshaped],
        "of another shape": list(reshaped.values()),
        "not in the model": incompatible.unexpected_keys,
    }
    return " ".join(f"{len(keys)} {what}{_first(keys)}." for what, keys in parts.items())


def _first(keys):
    more = ", ..." if len(keys) > 6 else ""
    return f": {', '.join(keys[:6])}{more}" if keys else ""
