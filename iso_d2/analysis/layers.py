"""How far each layer of a network is from an isometry: convolutions, SReLU thresholds, residual scales."""

import contextlib
import functools
import math

import torch
from detectron2.layers import CNNBlockBase
from torch import nn

from ..isometry import SharedScale, SReLU, find_convolutions, orthogonality_losses
from ..isometry.spectrum import isometric_side


def find_network(model):
    """The convolutional network within a model: what lies between the image and the heads.

    Args:
        model (nn.Module): a meta-architecture of Detectron2 or of iso_d2, or a bare network.

    Returns:
        tuple[str, nn.Module]: dotted name and module: `backbone`, of an FPN its `bottom_up`, else `unet`,
        else the model itself with the name "".

    Raises:
        ValueError: there is no convolution in it.
    """
    for name in ("backbone.bottom_up", "backbone", "unet", ""):
        with contextlib.suppress(AttributeError):
            network = model.get_submodule(name)
            break
    if not find_convolutions(network):
        raise ValueError(f"{type(model).__name__} has no nn.Conv2d or nn.ConvTranspose2d to analyse")
    return name, network


def find_blocks(network):
    """The blocks of a network, the steps in which its depth is counted.

    Args:
        network (nn.Module): as from :func:`find_network`.

    Returns:
        dict[str, nn.Module]: by dotted name, in the order of the modules: the stem and the blocks of ISONet
        and of Detectron2's ResNet, the members of UNet's lists; in any other network the direct children
        with convolutions, or the network itself, as "network", where it is a single layer.
    """
    modules = dict(network.named_modules())
    blocks = {name: m for name, m in modules.items() if isinstance(m, CNNBlockBase) and name}
    if not blocks:
        lists = [(n, m) for n, m in modules.items() if isinstance(m, nn.ModuleList)]
        blocks = {f"{name}.{i}": m for name, members in lists for i, m in enumerate(members)}
    if not blocks:
        blocks = {name: m for name, m in network.named_children() if find_convolutions(m)}
    return blocks or {"network": network}


def smallest_grid(kernel_size, stride):
    """The least circular grid on which no two shifts of the Gram of a kernel fall together.

    s (2 ceil(k / s) - 1) pixels an axis. A 1x1 kernel has the same singular values on any grid. A larger
    grid samples more frequencies of larger kernels, so that the range of the singular values can only grow.

    Args:
        kernel_size, stride ((int, int)): in pixels.

    Returns:
        tuple[int, int]: height and width in pixels, divisible by the stride.
    """
    return tuple(s * (2 * math.ceil(k / s) - 1) for k, s in zip(kernel_size, stride, strict=True))


@torch.no_grad()
def measure_convolution(conv, grid=0):
    """The range of the singular values of a convolution as an operator on a circular grid, without its gain.

    Of the side that can be an isometry, as in :func:`iso_d2.isometry.isometry_error`: pixels that a stride
    beyond the kernel size skips do not count. A transposed convolution is measured as the convolution whose
    adjoint it is. Dilation, coprime to the grid, changes none of it, and is left out. Of a weight that is not
    finite, as in a training that diverges, all values are NaN and none is near one.

    Args:
        conv (nn.Conv2d or nn.ConvTranspose2d): any groups and stride.
        grid (int): pixels an axis, at least; it is rounded up to :func:`smallest_grid` and to a multiple of
            the stride. A 1x1 kernel always has the smallest.

    Returns:
        dict: ``sigma_min``, ``sigma_median``, ``sigma_max``; ``isometry_error``, max |sigma - 1|;
        ``near_one``, the share, 0 to 1, of singular values from 0.5 to 1.5; ``grid``, [height, width] in
        pixels.
    """
    size = smallest_grid(conv.kernel_size, conv.stride)
    if max(conv.kernel_size) > 1:
        size = tuple(math.ceil(max(n, grid) / s) * s for n, s in zip(size, conv.stride, strict=True))
    try:
        values = isometric_side(conv.weight, size, conv.stride, conv.groups)
    except torch.linalg.LinAlgError:
        values = conv.weight.new_tensor([math.nan])
    low, median, high = values[-1].item(), values.median().item(), values[0].item()
    return {
        "sigma_min": low,
        "sigma_median": median,
        "sigma_max": high,
        "isometry_error": max(abs(low - 1), abs(high - 1)),
        "near_one": ((values - 1).abs() <= 0.5).float().mean().item(),
        "grid": list(size),
    }


@torch.no_grad()
def measure_convolutions(network, grid=0):
    """Singular values and Gram errors of every convolution.

    Args:
        network (nn.Module): the network.
        grid (int): as in :func:`measure_convolution`.

    Returns:
        dict[str, dict]: by dotted name, in the order of the modules: what :func:`measure_convolution` gives,
        ``gram_paper`` and ``gram_exact``, which is 1/2 ||Gram - delta||^2 in the two modes of
        :func:`iso_d2.isometry.orthogonality_loss`, ``shape`` of the weight, ``stride``, ``groups``,
        ``transposed``; and ``centred``, whether training keeps the means of its kernels at 0. A constant
        image then gives 0, so that the error is at least 1, unless it gives fewer values than it reads.
    """
    convs = find_convolutions(network)
    grams = {mode: orthogonality_losses(convs.values(), mode).tolist() for mode in ("paper", "exact")}
    return {
        name: {
            "shape": list(conv.weight.shape),
            "stride": list(conv.stride),
            "groups": conv.groups,
            "transposed": isinstance(conv, nn.ConvTranspose2d),
            "centred": getattr(conv, "centred", False),
            **measure_convolution(conv, grid),
            "gram_paper": grams["paper"][i],
            "gram_exact": grams["exact"][i],
        }
        for i, (name, conv) in enumerate(convs.items())
    }


@torch.no_grad()
def measure_thresholds(network):
    """The SReLU thresholds of a network.

    Returns:
        dict[str, dict]: ``min``, ``mean`` and ``max`` over the channels by the dotted name of each SReLU;
        empty where there is none.
    """
    return {
        name: {which: getattr(module.threshold, which)().item() for which in ("min", "mean", "max")}
        for name, module in network.named_modules()
        if isinstance(module, SReLU)
    }


def measure_scales(network):
    """The residual scales of a network.

    Returns:
        dict[str, float]: by the dotted name of each SharedScale, the mean of one with a scale a channel;
        empty where there is none.
    """
    return {n: m.scale.mean().item() for n, m in network.named_modules() if isinstance(m, SharedScale)}


@contextlib.contextmanager
def watching(modules, see):
    """Call see(name, module, inputs, output) after each of the modules, by name, within the context."""
    with contextlib.ExitStack() as handles:
        for name, module in modules.items():
            handles.enter_context(module.register_forward_hook(functools.partial(see, name)))
        yield
