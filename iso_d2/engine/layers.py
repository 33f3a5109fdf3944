"""Which convolutions of a model the hooks act on.

A pattern is the dotted name of a convolution or of a module above it, ``backbone.res2``, or an fnmatch
pattern of such names, ``backbone.res*`` or ``*.conv2``.
"""

import re
from collections import Counter
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..isometry import SharedScale
from ..modeling import IsoBlock, ISONet, UNet

NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def unwrap(model):
    """The model that a data-parallel wrapper holds, or the model itself."""
    return model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model


def find_convolutions(model):
    """dict[str, nn.Module]: the convolutions by dotted name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        # A deformable convolution's offsets are predicted by a convolution that must stay near 0.
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not name.endswith("_offset")
    }


def select(names, patterns):
    """Those of `names` that a pattern matches, itself or through a module above it."""
    chosen = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for name in names if any(fnmatchcase(path, pattern) for path in _paths(name))}
        if not found:
            modules = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(
                f"Pattern {pattern!r} matches no convolution. Give the dotted name of a module or of a "
                "convolution, or an fnmatch pattern of such names. "
                f"Modules with convolutions: {', '.join(modules)}"
            )
        chosen |= found
    return [name for name in names if name in chosen]


def _paths(name):
    """'a.b.c' -> 'a', 'a.b', 'a.b.c'"""
    return accumulate(name.split("."), "{}.{}".format)


def default_layers(model, convs):
    roots = [name for name, module in model.named_modules() if isinstance(module, (ISONet, IsoBlock, UNet))]
    if roots:
        names = [n for n in convs if any(root == "" or n.startswith(root + ".") for root in roots)]
    elif isinstance(getattr(model, "backbone", None), nn.Module):
        names = [n for n in convs if re.match(r"backbone\.(?!fpn_|top_block\b)", n)]
    else:
        raise ValueError(
            f"{type(model).__name__} has neither an ISONet, a UNet nor a module `backbone`: name the "
            "layers to penalise in `include` (ISO.ORTHO.INCLUDE). "
            f"Its modules: {', '.join(name for name, _ in model.named_children())}"
        )
    outputs = {module.output for module in model.modules() if isinstance(module, UNet)}
    return [n for n in names if convs[n] not in outputs and not _left_out_by_the_paper(convs[n])]


def _left_out_by_the_paper(conv):
    """Its code leaves 7x7 kernels and 3-channel inputs alone. Those with a gain start as isometries."""
    return getattr(conv, "gain", 1) == 1 and (conv.kernel_size == (7, 7) or conv.in_channels == 3)


def branch_ends(model):
    """The last convolutions of the branches of residual blocks in the style of ResNet."""
    ends = set()
    for block in model.modules():
        convs = [module for name, module in block.named_children() if re.fullmatch(r"conv\d+", name)]
        if not convs or not (hasattr(block, "shortcut") or hasattr(block, "downsample")):
            continue
        # A scale of 0 with a branch of 0 would never learn. A norm layer bounds the branch by itself,
        # and over a branch of 0 it would multiply the gradient by 1 / sqrt(eps).
        if not any(isinstance(module, (SharedScale, *NORM_LAYERS)) for module in block.modules()):
            ends.add(convs[-1])
    return ends


def summary(names):
    """'backbone.res2 (10), backbone.res3 (13)': how many of the names lie where, down to the first number."""
    counts = Counter(re.split(r"\.\d+\b|\.\w+$", name, maxsplit=1)[0] for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items()) or "none"
