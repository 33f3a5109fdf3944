"""What flows through a whole network at given images: signal and gradient by depth."""

import math

import torch
from detectron2.layers import CNNBlockBase
from torch.nn.modules.batchnorm import _BatchNorm

from .isometry_layers import find_blocks


class BlockRecorder:
    """Keeps what flows through the blocks of a network in its forward passes, as long as it is attached.

    Args:
        network (nn.Module): the network.
        keep (callable): what is kept of a name and a tensor; the tensor itself by default.

    Attributes:
        points (dict[str, Tensor]): of each (N, C, H, W), in the order of execution. The first is where the
            blocks begin: the output of the block "stem" if there is one, else, as "input", what goes into the
            first block; then comes each block's output under its name. Each forward pass starts it anew.
    """

    def __init__(self, network, keep=lambda name, x: x):
        self.points = {}
        self._keep = keep
        self._handles = [network.register_forward_pre_hook(self._start)]
        for name, block in find_blocks(network).items():
            self._handles.append(block.register_forward_pre_hook(self._enter))
            self._handles.append(block.register_forward_hook(self._leaver(name)))

    def _start(self, network, inputs):
        self.points.clear()
        self._given = None

    def _enter(self, block, inputs):
        if self._given is None:
            self._given = inputs[0]

    def _leaver(self, name):
        def leave(block, inputs, output):
            if not self.points and name != "stem":
                self.points["input"] = self._keep("input", self._given)
            self.points[name] = self._keep(name, output)

        return leave

    def detach(self):
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()


class _InputReached(Exception):
    pass


@torch.no_grad()
def network_input(model, network, images):
    """What a model feeds its network for given images: normalised, padded.

    Args:
        model (nn.Module): a meta-architecture that takes a list of dicts with ``image``.
        network (nn.Module): a module of it.
        images (sequence[Tensor]): (C, H, W), 0 to 255, in the model's channel order.

    Returns:
        Tensor: (N, C, H', W').

    Raises:
        ValueError: an image is smaller than the network's stride.
    """
    stride = math.prod(m.stride for m in find_blocks(network).values() if isinstance(m, CNNBlockBase))
    smallest = min(min(image.shape[1:]) for image in images)
    if smallest < stride:
        raise ValueError(
            f"{type(network).__name__} has a stride of {stride} pixels in all, the images have {smallest}: "
            f"take images of {stride} pixels or more"
        )
    caught = []

    def catch(module, inputs):
        caught.append(inputs[0].detach().clone())
        raise _InputReached  # heads cost much and are not wanted

    handle, was_training = network.register_forward_pre_hook(catch), model.training
    model.eval()
    try:
        model([{"image": image, "height": image.shape[1], "width": image.shape[2]} for image in images])
    except _InputReached:
        pass
    finally:
        handle.remove()
        model.train(was_training)
    return caught[0]


@torch.no_grad()
def calibrate_batch_norm(network, images):
    """Give each batch normalization the statistics of a batch of images in place of its running ones.

    An untrained network has none yet. Each layer sees what the calibrated ones before it give.

    Args:
        network (nn.Module): its batch normalizations are changed, nothing else.
        images (Tensor): (N, C, H, W), the network's input.

    Returns:
        int: how many layers were calibrated.

    Raises:
        ValueError: one of them sees a single value a channel.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        network(images)
    except ValueError as error:
        raise ValueError(
            "an untrained batch normalization takes its statistics from the images, and "
            f"{len(images)} of {images.shape[2]}x{images.shape[3]} pixels leave it a single value a channel: "
            "take more or larger ones"
        ) from error
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    return len(norms)


def measure_depth(network, images, seed=0):
    """Signal and gradient by depth: the norm of each block's output, and of the gradient that reaches it.

    The gradient starts as a random direction of norm 1 at the last block's output, of one image each.

    Args:
        network (nn.Module): in the mode to be measured; its parameters get no gradient.
        images (Tensor): (N, C, H, W), the network's input.
        seed (int): of the directions.

    Returns:
        dict[str, dict]: by the names of :class:`BlockRecorder`, in the order of execution: ``signal_rms``,
        the root of the mean square of the outputs, and ``signal_norm``, their norm, each divided by that at
        the first point; ``gradient_norm``; all of one image, root of the mean square over the images.
    """
    points, _ = record_points(network, images)
    last = list(points.values())[-1]
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(last.shape, generator=generator, dtype=torch.float64).to(last)
    direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    gradients = torch.autograd.grad(
        last, list(points.values()), direction, allow_unused=True, materialize_grads=True
    )
    first = next(iter(points.values())).detach()
    return {
        name: {
            "signal_rms": (_rms(x) / _rms(first)).item(),
            "signal_norm": (x.detach().norm() / first.norm()).item(),
            "gradient_norm": gradient.norm().item() / math.sqrt(len(gradient)),
        }
        for (name, x), gradient in zip(points.items(), gradients, strict=True)
    }


def record_points(network, images):
    """Run the network with gradients to the images and to nothing else.

    Returns:
        tuple[dict[str, Tensor], Tensor]: the points of a :class:`BlockRecorder`, and the images as a leaf.
    """
    images = images.detach().clone().requires_grad_()
    kept = {p: p.requires_grad for p in network.parameters()}
    recorder = BlockRecorder(network)
    try:
        network.requires_grad_(False)
        network(images)
    finally:
        recorder.detach()
        for parameter, required in kept.items():
            parameter.requires_grad = required
    return recorder.points, images


def _rms(x):
    return x.detach().square().mean().sqrt()
