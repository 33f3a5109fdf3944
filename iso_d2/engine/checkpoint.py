"""Checkpoints that are written whole or not at all, and read only if they are whole, harmless and fit."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import CNNBlockBase
from safetensors.torch import load_file
from torch import nn

from ..files import replacing, write_atomically
from ..isometry.scaled import gains_in_state_dicts

# A detector has no place for these weights of an ISONet pretrained for classification, and needs none.
CLASSIFIER_KEYS = ("linear.weight", "linear.bias")
BEST = "model_best"
# What the arrays, numbers and strings in Detectron2's .pkl files consist of
_HARMLESS = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
}


class IsoCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, safe against interruptions, damage, hostile files and wrong models.

    - A checkpoint is written beside its place and takes it when it is whole and on the disk;
      ``last_checkpoint`` likewise. Weights that are not finite are not saved.
    - To resume, it takes the checkpoint that ``last_checkpoint`` names. If that is damaged or gone it takes,
      of ``model_<step>.pth`` and ``model_final.pth``, the whole one of the most steps, and says so.
    - With an `average` (:class:`~iso_d2.engine.AverageHook`), that is what is saved as the model.
    - Files are loaded without running code: tensors (in .pkl arrays), numbers, strings and containers.
    - A checkpoint must fit the model's backbone: hold, with the same names and shapes, all weights (tensors
      of two or more dimensions) of at least one block other than the stem. Single tensors do not count: some
      of ResNet-18 have the names and shapes of others in ResNet-50. In a backbone without Detectron2's blocks
      each layer counts as a block, and a model without ``backbone`` counts as a whole. One warning lists
      everything else that did not match, except the classifier of pretrained weights, which a detector has no
      use for.
    """

    average = None

    def save(self, name, **kwargs):
        """As in :class:`DetectionCheckpointer`.

        Raises:
            FloatingPointError: weights are not finite.
            OSError: the file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.average.weights if self.average else self.model.state_dict()}
        # buffers may hold infinity on purpose
        ruined = _not_finite(dict(self.model.named_parameters()))
        if ruined:
            raise FloatingPointError(
                f"The weights are not finite any more and are not saved: {_first(ruined)}. "
                + self._advice("Lower SOLVER.BASE_LR or clip the gradients (SOLVER.CLIP_GRADIENTS), then")
            )
        data |= {key: thing.state_dict() for key, thing in self.checkpointables.items()} | kwargs
        file = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", file)
        try:
            with replacing(file) as unfinished:
                torch.save(data, unfinished)
            # the best is not the latest, from which a training goes on
            if name != BEST:
                self.tag_last_checkpoint(file.name)
        # PyTorch raises RuntimeError when the disk is full
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"Checkpoint {str(file)!r} cannot be written: {error}. "
                + self._advice("Make space, or make the folder writable, and")
            ) from error

    def _advice(self, remedy):
        try:
            last = f"start again with --resume. The last good checkpoint is {self.get_checkpoint_file()!r}"
        except ValueError:
            last = "start again. There is no checkpoint yet"
        return f"{remedy} {last}"

    def tag_last_checkpoint(self, last_filename_basename):
        write_atomically(Path(self.save_dir, "last_checkpoint"), last_filename_basename)

    def has_checkpoint(self):
        """bool: whether there is anything to resume from, whole or not."""
        return bool(self._named() or self.numbered_files())

    def get_checkpoint_file(self):
        """The checkpoint to resume from.

        Returns:
            str: its path.

        Raises:
            ValueError: there is none, or none is whole.
        """
        faults, named = {}, self._named()
        if named:
            fault = damage(named)
            if fault is None:
                return str(named)
            faults[named] = fault
        # that of the most steps first
        for path in sorted(self.numbered_files(), key=_steps, reverse=True):
            fault = faults.get(path) or damage(path)
            if fault is None:
                why = _listed(faults) or "last_checkpoint is missing or empty"
                self.logger.warning("Going on from %s. %s", path, why)
                return str(path)
            faults[path] = fault
        raise ValueError(
            f"{self.save_dir} holds no whole checkpoint to resume from. {_listed(faults)} "
            "Take another OUTPUT_DIR, or remove these files to start from the beginning."
        )

    def _named(self):
        """Path or None: what last_checkpoint names, if that is a file name."""
        try:
            name = Path(self.save_dir, "last_checkpoint").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return Path(self.save_dir, name) if name and name.isprintable() and Path(name).name == name else None

    def numbered_files(self):
        """list[Path]: what a training leaves, model_<step>.pth and model_final.pth, whole or not."""
        files = Path(self.save_dir).glob("model_*.pth")
        return sorted(file for file in files if re.fullmatch(r"model_(\d+|final)", file.stem))

    def load(self, path, *args, **kwargs):
        """As in :class:`DetectionCheckpointer`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, would run code, has weights that are not finite, or does not fit
                the model's backbone at all.
        """
        path = str(path) if path else path
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
            if filename.endswith(".pkl"):
                with open(filename, "rb") as file:
                    _HarmlessUnpickler(file, encoding="latin1").load()
            elif filename.endswith(".pyth"):
                self._torch_load(filename)
            elif (fault := damage(filename)) and zipfile.is_zipfile(filename):
                raise ValueError(fault)
            is_plain = filename.endswith(".safetensors")
            checkpoint = {"model": load_file(filename)} if is_plain else super()._load_file(filename)
            if not isinstance(checkpoint["model"], dict):
                raise TypeError(f"it holds a {type(checkpoint['model']).__name__}, not a state dict")
        except Exception as error:
            raise ValueError(
                f"Checkpoint {filename!r} cannot be read: it is truncated or no checkpoint of PyTorch or "
                "Detectron2, or it holds objects that could run code. Copy it again, or name another file; "
                f"if you trust its origin, save its state dict alone with torch.save. The cause: {error}"
            ) from error
        buffers = {name for name, _ in self.model.named_buffers()}
        weights = {key: value for key, value in checkpoint["model"].items() if key not in buffers}
        ruined = _not_finite(weights)
        if ruined:
            raise ValueError(
                f"Checkpoint {filename!r} has weights that are not finite: {_first(ruined)}. "
                "The training that wrote it had diverged. Take an earlier one."
            )
        return checkpoint

    def _torch_load(self, f):
        return torch.load(f, map_location="cpu", weights_only=True)

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
    counts = {f"{len(keys)} {what}": _first(keys) for what, keys in parts.items()}
    return " ".join(f"{count}: {names}." if names else f"{count}." for count, names in counts.items())


def _first(keys):
    return ", ".join(keys[:6]) + (", ..." if len(keys) > 6 else "")


def _not_finite(state):
    """list[str]: the names of the tensors and arrays of floats that hold infinity or NaN."""
    arrays = {k: v for k, v in state.items() if isinstance(v, (torch.Tensor, np.ndarray))}
    tensors = {key: torch.as_tensor(value) for key, value in arrays.items()}
    return [key for key, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]


def damage(path):
    """str or None: why a file is no whole checkpoint, by the checksums that PyTorch's format holds."""
    try:
        if not os.path.getsize(path):
            return "it is empty"
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        return f"its part {damaged} is damaged" if damaged else None
    # which error depends on the damage
    except Exception as error:
        return str(error)


def _steps(path):
    """int: the last step before a checkpoint, -1 if it cannot be read."""
    try:
        return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["iteration"])
    except Exception:
        return -1


def _listed(faults):
    return "".join(f"{path} is damaged: {fault}. " for path, fault in faults.items()).strip()


class _HarmlessUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")
        return super().find_class(module, name)
