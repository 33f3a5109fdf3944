"""A network as a whole: what it is fed, and the norms of its signal and gradient by depth."""

import contextlib
import math

import torch
from detectron2.layers import CNNBlockBase
from fvcore.nn.precise_bn import update_bn_stats
from torch.nn.modules.batchnorm import _BatchNorm

from ..isometry import find_convolutions
from .layers import find_blocks, measure_convolution, measure_scales, measure_thresholds, watching
from .measured_signal import record_signal


class _InputReached(Exception):
    pass


@torch.no_grad()
def catch_input(model, module, batch):
    """What a module of a model reads, without running the model beyond it.

    Args:
        model (nn.Module): in the mode wanted.
        module (nn.Module): a part of it.
        batch: what the model takes.

    Returns:
        Tensor or None: the module's first argument; None where the model does not run it.
    """
    caught = []

    def catch(module, inputs):
        caught.append(inputs[0])
        raise _InputReached

    with contextlib.suppress(_InputReached), module.register_forward_pre_hook(catch):
        model(batch)
    return caught[0] if caught else None


def network_input(model, network, batch):
    """What a model feeds its network in evaluation: images (N, C, H, W), normalised and padded.

    Args:
        model (nn.Module): a meta-architecture, or the network itself.
        network (nn.Module): a module of it.
        batch (list[dict] or Tensor): what the model takes: dicts with ``image``, (C, H, W), or (N, C, H, W).

    Raises:
        ValueError: an image is smaller than the network's stride.
    """
    stride = math.prod(m.stride for m in find_blocks(network).values() if isinstance(m, CNNBlockBase))
    images = batch if isinstance(batch, torch.Tensor) else [x["image"] for x in batch]
    smallest = min(min(image.shape[1:]) for image in images)
    if smallest < stride:
        raise ValueError(
            f"{type(network).__name__} has a stride of {stride} pixels in all, the images have {smallest}: "
            f"take images of {stride} pixels or more"
        )
    if network is model:
        return batch
    was_training = model.training
    model.eval()
    try:
        return catch_input(model, network, batch)
    finally:
        model.train(was_training)


def calibrate_batch_norm(network, images):
    """Give each batch normalization the statistics of a batch of images in place of its running ones.

    Each layer sees what the calibrated ones before it give.

    Args:
        network (nn.Module): its statistics are changed, and it is in evaluation mode afterwards.
        images (Tensor): (N, C, H, W), the network's input.

    Returns:
        int: how many layers were calibrated.

    Raises:
        ValueError: one of them sees a single value a channel.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    network.eval()
    for norm in norms:
        norm.train()
    try:
        update_bn_stats(network, [images], num_iters=1)
    except ValueError as error:
        raise ValueError(
            "an untrained batch normalization takes its statistics from the images, and "
            f"{len(images)} of {images.shape[2]}x{images.shape[3]} pixels leave it a single value a channel: "
            "take more or larger ones"
        ) from error
    network.eval()
    return len(norms)


@contextlib.contextmanager
def record_points(network, keep=lambda name, x: x):
    """Keep what flows through the blocks of a network in the forward passes within the context.

    Args:
        network (nn.Module): the network.
        keep (callable): what is kept of a name and a tensor; the tensor itself by default.

    Yields:
        dict[str, Tensor]: of each (N, C, H, W), in the order of execution. The first is where the blocks
        begin: the output of the block "stem" if there is one, else, as "input", what goes into the first
        block; then comes each block's output under its name. Each further pass takes the place of the one
        before it.
    """
    points = {}

    def see(name, block, inputs, output):
        if not points and name != "stem":
            points["input"] = keep("input", inputs[0])
        points[name] = keep(name, output)

    start = network.register_forward_pre_hook(lambda network, inputs: points.clear())
    with start, watching(find_blocks(network), see):
        yield points


def trace_points(network, images):
    """Run a network with gradients to the images and to nothing else.

    Returns:
        tuple[dict[str, Tensor], Tensor]: the points of :func:`record_points`, and the images as a leaf.
    """
    images = images.detach().clone().requires_grad_()
    constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
    with record_points(network) as points:
        torch.func.functional_call(network, constants, (images,))
    return points, images


def measure_depth(network, images):
    """Signal and gradient by depth: the norm of each block's output, and of the gradient that reaches it.

    The gradient starts as a random direction of norm 1 at the last block's output, of one image each.

    Args:
        network (nn.Module): in the mode to be measured; its parameters get no gradient.
        images (Tensor): (N, C, H, W), the network's input.

    Returns:
        dict[str, dict]: by the names of :func:`record_points`, in the order of execution: ``signal_rms``,
        the root of the mean square of the outputs, and ``signal_norm``, their norm, each divided by that at
        the first point; ``gradient_norm``; all of one image, root of the mean square over the images.
    """
    points, _ = trace_points(network, images)
    outputs = list(points.values())
    first, last = outputs[0].detach(), outputs[-1]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(last.shape, generator=generator, dtype=torch.float64).to(last)
    direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    gradients = torch.autograd.grad(last, outputs, direction, allow_unused=True, materialize_grads=True)
    return {
        name: {
            "signal_rms": (_rms(x) / _rms(first)).item(),
            "signal_norm": (x.detach().norm() / first.norm()).item(),
            "gradient_norm": gradient.norm().item() / math.sqrt(len(gradient)),
        }
        for (name, x), gradient in zip(points.items(), gradients, strict=True)
    }


@contextlib.contextmanager
def record_step(network):
    """Measure a training step within the context in the step's own passes.

    Args:
        network (nn.Module): as from :func:`~iso_d2.analysis.find_network`.

    Yields:
        callable: to be called after the step. It returns a dict[str, float] with, by dotted names:

        - ``<convolution>_min``, ``_max``, ``_error``, ``_near``: singular values of the present weight on the
          smallest circular grid, see :func:`iso_d2.analysis.layers.smallest_grid`, max |sigma - 1|, and the
          share, 0 to 1, of singular values from 0.5 to 1.5;
        - ``<SReLU>_min``, ``_mean``, ``_max``: its thresholds; ``<scale>``: a residual scale;
        - ``<SReLU>_held``: the share, 0 to 1, of clipped values in its output, and ``<convolution or
          SReLU>_mean_square`` of its output;
        - ``<block>_signal``: root mean square of the block's output, divided by that of the stem's output or,
          without a stem, of the input;
        - ``<block>_gradient``: norm of the gradient of the loss in the block's output, divided by that in the
          last block which has one. Where heads read several stages it comes in at each of them.
    """
    gradients = {}

    def keep(name, x):
        if x.requires_grad:
            x.register_hook(lambda gradient: gradients.update({name: gradient.float().norm()}))
        return _rms(x.float())

    def values():
        found = {f"{name}_signal": x / next(iter(points.values())) for name, x in points.items()}
        last = [gradients[name] for name in points if name in gradients][-1:]
        found |= {f"{name}_gradient": x / last[0] for name, x in gradients.items()}
        for name, conv in find_convolutions(network).items():
            layer = measure_convolution(conv)
            found[f"{name}_min"], found[f"{name}_max"] = layer["sigma_min"], layer["sigma_max"]
            found[f"{name}_error"], found[f"{name}_near"] = layer["isometry_error"], layer["near_one"]
        for part in (signal, measure_thresholds(network)):
            found |= {f"{name}_{what}": x for name, point in part.items() for what, x in point.items()}
        return {name: float(x) for name, x in (found | measure_scales(network)).items()}

    with record_points(network, keep) as points, record_signal(network) as signal:
        yield values


def _rms(x):
    return x.detach().square().mean().sqrt()
