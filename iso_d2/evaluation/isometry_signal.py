"""The signal of an isometric network by layer: its mean square, and the share of values that SReLUs hold.

A network whose SReLUs hold nothing is linear but for its pooling; one whose SReLUs hold everything passes
nothing on. docs/signal.md says why either happens.
"""

import torch
from torch import nn

from ..isometry import SReLU

# Shares below and above which an SReLU is linear or dead
LINEAR, DEAD = 0.001, 0.99


class SignalRecorder:
    """Measures the outputs of convolutions and SReLUs in the forward passes, as long as it is attached.

    Args:
        network (nn.Module): the network.

    Attributes:
        mean_squares (dict[str, Tensor]): of each convolution's and each SReLU's output, without dimensions,
            float32, in the order of execution. Each further pass takes the place of the one before.
        held (dict[str, Tensor]): the same for the share, 0 to 1, of each SReLU's output that is its
            threshold.
    """

    def __init__(self, network):
        self.mean_squares, self.held = {}, {}
        self._handles = [
            module.register_forward_hook(self._measurer(name))
            for name, module in network.named_modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, SReLU))
        ]

    def _measurer(self, name):
        @torch.no_grad()
        def measure(module, inputs, output):
            self.mean_squares[name] = output.float().square().mean()
            if isinstance(module, SReLU):
                bound = module.threshold.to(output.dtype).view(-1, *[1] * (output.dim() - 2))
                self.held[name] = (output == bound).float().mean()

        return measure

    def detach(self):
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def measure_signal(network, images):
    """Mean square and held share at given images.

    Args:
        network (nn.Module): in the mode to be measured.
        images (Tensor): (N, C, H, W), the network's input.

    Returns:
        dict[str, dict]: by the dotted name of each convolution and SReLU, in the order of execution:
        ``mean_square``, and for an SReLU ``held``, the share of its output that is its threshold, 0 to 1.
    """
    recorder = SignalRecorder(network)
    try:
        network(images)
    finally:
        recorder.detach()
    return {
        name: {"mean_square": value.item()}
        | ({"held": recorder.held[name].item()} if name in recorder.held else {})
        for name, value in recorder.mean_squares.items()
    }


def signal_faults(held):
    """The SReLUs at which a network is linear or dead, in words.

    Args:
        held (dict[str, float]): shares by the names of the SReLUs.

    Returns:
        list[str]
    """
    faults = []
    for what, names in (
        (
            f"linear (below {LINEAR:.1%} of the values held)",
            [n for n, share in held.items() if share < LINEAR],
        ),
        (f"dead (above {DEAD:.0%} held)", [n for n, share in held.items() if share > DEAD]),
    ):
        if names:
            faults.append(f"{what} at {len(names)} of {len(held)} SReLUs: {', '.join(names)}")
    return faults
