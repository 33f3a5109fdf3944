"""The convolutions of a whole model, chosen by name, and its delta initialisation.

A pattern is the dotted name of a convolution or of a module above it, ``backbone.res2``, or an fnmatch
pattern of such names, ``backbone.res*`` or ``*.conv2``.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020, section 3.
"""

import re
from collections import Counter
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .activation import SharedScale
from .initialization import delta_init_

NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def unwrap(model):
    """The model inside a data-parallel wrapper, or the model itself."""
    return model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model


def find_convolutions(model):
    """dict[str, nn.Conv2d | nn.ConvTranspose2d]: by dotted name, in the order of the modules."""
    return {
        name: module
        for name, module in model.named_modules()
        # A convolution that predicts the offsets of a deformable one must stay near 0.
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not name.endswith("_offset")
    }


def select(names, patterns):
    """list[str]: those of `names` that a pattern matches. ValueError: a pattern that matches none."""
    chosen = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
        if not found:
            modules = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(
                f"Pattern {pattern!r} matches no convolution. Give the dotted name of a module or of a "
                "convolution, or an fnmatch pattern of such names. "
                f"Modules with convolutions: {', '.join(modules)}"
            )
        chosen |= found
    return [name for name in names if name in chosen]


def count_by_module(names):
    """'backbone.res2 (10), backbone.res3 (13)': how many of the names lie where, down to the first number."""
    counts = Counter(re.split(r"\.\d+\b|\.\w+$", name, maxsplit=1)[0] for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items()) or "none"


def delta_init_model_(model, include):
    """Delta-initialise chosen convolutions of a model, in place.

    Kernels become delta kernels and biases 0. In a residual block x + f(x) without normalization the last
    convolution of f becomes 0 instead, so that the block starts as its shortcut: with a delta there, every
    block would double the signal. A block with a SharedScale needs no zero, because its scale already starts
    at 0. 7x7 kernels stay as they are, as in the paper's code, and so do linear layers.

    Args:
        model (nn.Module): any model.
        include (str or sequence[str]): patterns of the convolutions.

    Returns:
        dict[str, str]: what became of each chosen convolution: "delta", "zero" or "kept".

    Raises:
        ValueError: a pattern that matches no convolution.
    """
    convs, ends = find_convolutions(model), _branch_ends(model)
    fates = {}
    for name in select(convs, include):
        conv = convs[name]
        if conv.kernel_size == (7, 7):
            fates[name] = "kept"
            continue
        fates[name] = "zero" if conv in ends else "delta"
        if conv in ends:
            nn.init.zeros_(conv.weight)
        else:
            # Without the stride: the plain delta of the paper, at which its penalty is 0.
            delta_init_(conv.weight, groups=conv.groups, transposed=isinstance(conv, nn.ConvTranspose2d))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return fates


def _branch_ends(model):
    """The last convolutions of the branches of residual blocks in the style of ResNet."""
    ends = set()
    for block in model.modules():
        convs = [module for name, module in block.named_children() if re.fullmatch(r"conv\d+", name)]
        if not convs or not (hasattr(block, "shortcut") or hasattr(block, "downsample")):
            continue
        # A branch of 0 behind a scale of 0 would never learn. A norm layer bounds the branch by itself,
        # and over a branch of 0 it would multiply the gradient by 1 / sqrt(eps).
        if not any(isinstance(module, (SharedScale, *NORM_LAYERS)) for module in block.modules()):
            ends.add(convs[-1])
    return ends
