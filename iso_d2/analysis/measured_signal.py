"""What the log prints of a network's signal: mean square by layer, and the share of values that SReLUs clip.

An isometric network whose SReLUs clip nothing is linear but for its pooling; one whose SReLUs clip everything
passes nothing on. docs/signal.md says why either happens.
"""

import contextlib

import torch
from tabulate import tabulate
from torch import nn

from ..isometry import SReLU
from .layers import watching

# Shares of clipped values below and above which an SReLU is linear or dead
LINEAR, DEAD = 0.001, 0.99


@contextlib.contextmanager
def record_signal(network):
    """Measure the outputs of convolutions and SReLUs in the forward passes within the context.

    Args:
        network (nn.Module): the network.

    Yields:
        dict[str, dict]: by the dotted name of each convolution and SReLU, in the order of execution:
        ``mean_square`` of its output, and for an SReLU ``held``, the share of clipped values, 0 to 1, which
        are equal to its threshold. Both are tensors without dimensions, float32. Each further pass takes the
        place of the one before.
    """
    signal = {}

    @torch.no_grad()
    def measure(name, module, inputs, output):
        signal[name] = {"mean_square": output.float().square().mean()}
        if isinstance(module, SReLU):
            bound = module.threshold.to(output.dtype).view(-1, *[1] * (output.dim() - 2))
            signal[name]["held"] = (output == bound).float().mean()

    kinds = nn.Conv2d, nn.ConvTranspose2d, SReLU
    with watching({n: m for n, m in network.named_modules() if isinstance(m, kinds)}, measure):
        yield signal


@torch.no_grad()
def measure_signal(network, images):
    """Mean square and share of clipped values at given images.

    Args:
        network (nn.Module): in the mode to be measured.
        images (Tensor): (N, C, H, W), the network's input.

    Returns:
        dict[str, dict]: as from :func:`record_signal`, of floats.
    """
    with record_signal(network) as signal:
        network(images)
    return {name: {what: x.item() for what, x in point.items()} for name, point in signal.items()}


def signal_faults(signal):
    """The SReLUs at which a network is linear or dead, in words.

    Args:
        signal (dict[str, dict]): as from :func:`measure_signal` or :func:`record_signal`.

    Returns:
        list[str]: at most one sentence of each kind.
    """
    clipped = {name: float(point["held"]) for name, point in signal.items() if "held" in point}
    kinds = {
        f"linear (below {LINEAR:.1%} of the values clipped)": [n for n, x in clipped.items() if x < LINEAR],
        f"dead (above {DEAD:.0%} clipped)": [n for n, x in clipped.items() if x > DEAD],
    }
    return [
        f"{kind} at {len(names)} of {len(clipped)} SReLUs: {', '.join(names)}"
        for kind, names in kinds.items()
        if names
    ]


def signal_table(signal):
    """What :func:`measure_signal` gives, a row for each SReLU: str."""
    rows = [
        [name, float(point["mean_square"]), 100 * float(point["held"])]
        for name, point in signal.items()
        if "held" in point
    ]
    return tabulate(rows, ["output of", "mean square", "clipped (%)"], floatfmt=("", ".3g", ".2f"))
