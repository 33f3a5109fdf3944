"""Checkpoints of the ISONet authors' code, to this package's layout and back.

https://github.com/HaozhiQi/ISONet saves ``{"net": state dict, "optim": ..., "epoch": ..., ...}``, the
state dict of a net in DataParallel. The names of a parameter in both layouts:

    authors                       here                           shape there, if different
    stem.conv.weight              stem.conv.weight
    stem.relu.srelu_bias          stem.srelu.threshold           (1, C, 1, 1), here (C,)
    s1.b1.f.a.weight              res2.0.branch.conv1.weight
    s1.b1.f.a_relu.srelu_bias     res2.0.branch.srelu1.threshold (1, C, 1, 1), here (C,)
    s1.b1.f.shared_scalar.scale   res2.0.scale.scale             (1, 1, 1, 1), here ()
    s1.b1.proj.weight             res2.0.shortcut.weight
    s1.b1.relu.srelu_bias         res2.0.srelu.threshold         (1, C, 1, 1), here (C,)
    head.fc.weight, head.fc.bias  linear.weight, linear.bias
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .isonet import LAYOUTS, ISONet, isonet_layout

# Patterns of the names here -> the authors'. Stages count from res2 and s1, blocks from 0 and b1.
AUTHORS_NAMES = {
    r"stem\.conv\.weight": "stem.conv.weight",
    r"stem\.srelu\.threshold": "stem.relu.srelu_bias",
    r"res(\d+)\.(\d+)\.branch\.conv(\d)\.weight": "s{stage}.b{block}.f.{letter}.weight",
    r"res(\d+)\.(\d+)\.branch\.srelu(\d)\.threshold": "s{stage}.b{block}.f.{letter}_relu.srelu_bias",
    r"res(\d+)\.(\d+)\.scale\.scale": "s{stage}.b{block}.f.shared_scalar.scale",
    r"res(\d+)\.(\d+)\.shortcut\.weight": "s{stage}.b{block}.proj.weight",
    r"res(\d+)\.(\d+)\.srelu\.threshold": "s{stage}.b{block}.relu.srelu_bias",
    r"linear\.(weight|bias)": "head.fc.{0}",
}
PREFIX = re.compile(r"^(module\.)?(backbone\.)?")


@dataclass(frozen=True)
class Variant:
    """The kind of net that a state dict is of."""

    depth: int
    residual: bool
    stem: str
    num_classes: int

    def __str__(self):
        family = "R-ISONet" if self.residual else "ISONet"
        return f"{family}-{self.depth}, {self.stem} stem, {self.num_classes} classes"


def read_checkpoint(path):
    """The content of a checkpoint file, read without executing anything in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as tensors and plain Python values, or is no dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Checkpoint {path!r} does not exist") from error
    except Exception as error:
        raise ValueError(
            f"{path!r} cannot be read: it is truncated, no checkpoint of PyTorch, or holds more than tensors "
            f"and plain Python values, which is not loaded for safety. The cause: {error}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path!r} holds a {type(content).__name__}, not a checkpoint's dict")
    return content


def to_isonet(checkpoint):
    """The state dict of an ISONet from a checkpoint of the authors' code or of this package.

    Args:
        checkpoint (dict): ``{"net": state dict}`` or the state dict alone, with or without "module.";
            or ``{"model": state dict}`` of an ISONet or of an ImageClassifier over one.

    Returns:
        tuple[dict[str, Tensor], Variant]: the state dict with the names of :class:`ISONet`, without prefix,
        and what it is of.

    Raises:
        ValueError: it is not of an ISONet; the message names every parameter that is missing, has another
            shape or has no place.
    """
    scales = {}
    if "model" in checkpoint:
        state, scales = _split_scales(_without_prefix(checkpoint["model"]))
        state = _with_authors_names(state)
    else:
        state = _without_prefix(checkpoint.get("net", checkpoint))
    variant = recognize(state)
    # only for names and shapes: nothing is allocated on the meta device
    with torch.device("meta"):
        net = ISONet(variant.depth, variant.residual, stem=variant.stem, num_classes=variant.num_classes)
    places = {_authors_name(name): (name, tensor) for name, tensor in net.state_dict().items()}
    shapes = {name: _authors_shape(*place) for name, place in places.items()}
    wrong = [f"{name} is missing" for name in places if name not in state]
    wrong += [f"{name} has no place" for name in state if name not in places]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in state and state[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"The checkpoint does not fit {variant}: {'; '.join(wrong)}")
    ours = {ours: state[name].reshape(like.shape).clone() for name, (ours, like) in places.items()}
    return ours | scales, variant


def to_authors(checkpoint):
    """The reverse: a state dict in the authors' layout, without "module.".

    That layout has no gains and metrics, so they are multiplied into the weights.

    Args:
        checkpoint (dict): ``{"model": state dict}`` of an ISONet or of an ImageClassifier over one.

    Returns:
        dict[str, Tensor]

    Raises:
        ValueError: the authors' layout has no name for some parameters; the message names them.
    """
    state, scales = _split_scales(_without_prefix(checkpoint.get("model")))
    for name, scale in scales.items():
        weight = f"{name.rpartition('.')[0]}.weight"
        if scale.dim() == 1:
            scale = scale.view(-1, *[1] * (state[weight].dim() - 2))
        state[weight] = (state[weight] * scale).to(state[weight].dtype)
    return _with_authors_names(state)


def _split_scales(state):
    """A state dict without gains and metrics, and these."""
    scales = {name: tensor for name, tensor in state.items() if name.endswith((".gain", ".metric"))}
    return {name: tensor for name, tensor in state.items() if name not in scales}, scales


def _with_authors_names(state):
    names = {name: _authors_name(name) for name in state}
    unknown = [name for name, theirs in names.items() if theirs is None]
    if unknown:
        raise ValueError(
            "Not of an ISONet or an ImageClassifier over one: the authors' layout has no name for "
            + ", ".join(unknown)
        )
    return {
        names[name]: tensor.reshape(_authors_shape(name, tensor)).clone() for name, tensor in state.items()
    }


def recognize(state):
    """The Variant of a state dict in the authors' layout, without "module."; ValueError if there is none."""
    stem, head = state.get("stem.conv.weight"), state.get("head.fc.weight")
    if stem is None or head is None or stem.ndim != 4 or head.ndim != 2:
        raise ValueError(
            "Not a checkpoint of the ISONet authors' code or of an ImageClassifier over ISONet: it lacks "
            f"stem.conv.weight or head.fc.weight. Its first keys: {', '.join(map(str, list(state)[:5]))}"
        )
    kind = "cifar" if stem.shape[2] == 3 else "imagenet"
    found = {
        tuple(map(int, m.groups())) for m in (re.match(r"s(\d+)\.b(\d+)\.", name) for name in state) if m
    }
    counts = [sum(stage == s for stage, _ in found) for s in sorted({stage for stage, _ in found})]
    bottleneck = "s1.b1.f.c.weight" in state
    depths = [*LAYOUTS, *([6 * counts[0] + 2] if kind == "cifar" and counts else [])]
    for depth in depths:
        layout = isonet_layout(depth, kind)
        if (layout.blocks, layout.bottleneck) == (tuple(counts), bottleneck):
            residual = any(name.endswith((".shared_scalar.scale", ".proj.weight")) for name in state)
            return Variant(depth, residual, kind, len(head))
    raise ValueError(
        f"Stages of {counts} {'bottleneck' if bottleneck else 'basic'} blocks with the {kind} stem are of no "
        f"known depth: {', '.join(map(str, LAYOUTS))}, or 6n+2 with three stages and the cifar stem"
    )


def _without_prefix(state):
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(
            'Not a checkpoint of a net: expected {"net": state dict} of the ISONet authors\' code, '
            '{"model": state dict} of Detectron2, or a state dict of tensors alone'
        )
    return {PREFIX.sub("", name): tensor for name, tensor in state.items()}


def _authors_name(name):
    """The authors' name of one of our parameters; None if they have none."""
    for pattern, theirs in AUTHORS_NAMES.items():
        if match := re.fullmatch(pattern, name):
            if len(match.groups()) < 2:
                return theirs.format(*match.groups())
            stage, block, *conv = map(int, match.groups())
            return theirs.format(stage=stage - 1, block=block + 1, letter="abc"[conv[0] - 1] if conv else "")
    return None


def _authors_shape(name, tensor):
    """Shape of a parameter there, by its name and shape here."""
    is_activation = name.endswith((".threshold", ".scale"))
    return (1, tensor.numel(), 1, 1) if is_activation else tuple(tensor.shape)
