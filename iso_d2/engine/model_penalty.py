"""The orthogonality penalty of a whole model: which convolutions have it, and its value in a training step.

Paper: Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020, section 3.
"""

import math
import re

from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..isometry import (
    ScaledConv2d,
    ScaledConvTranspose2d,
    SpectralPenalty,
    orthogonality_losses,
    orthogonality_multiply_adds,
)
from ..isometry.model import find_convolutions, select, unwrap
from ..modeling import IsoBlock, ISONet, UNet


def penalised_layers(model, include=None, exclude=()):
    """The convolutions of a model that the penalty acts on.

    Args:
        model (nn.Module): any model.
        include (sequence[str] or None): patterns, see :mod:`iso_d2.isometry.model`. None: the convolutions
            of every ISONet, IsoBlock and UNet (an isometric one or not), wherever it is; in a model without
            them every ScaledConv2d and ScaledConvTranspose2d with more than one channel a group, as
            :func:`iso_d2.isometry.isometrize` makes them; in a model without those the convolutions of
            ``model.backbone``, but not an FPN's own. Of these all but what the paper's code leaves out, too:
            7x7 kernels and 3-channel inputs, where they have no gain, and the output of a UNet.
        exclude (sequence[str]): patterns of layers to leave out. Frozen ones are left out anyway.

    Returns:
        dict[str, nn.Conv2d | nn.ConvTranspose2d]: by dotted name, in the order of the modules.

    Raises:
        ValueError: a pattern that matches no convolution; no `include` for a model without ISONet, UNet,
            scaled convolutions and ``backbone``.
    """
    convs = find_convolutions(model)
    names = select(convs, include) if include else _default_layers(model, convs)
    excluded = select(convs, exclude)
    return {n: convs[n] for n in names if n not in excluded and convs[n].weight.requires_grad}


class ModelPenalty:
    """The orthogonality penalty of chosen convolutions, for any training loop: gamma * sum_l L(W_l).

        penalty = ModelPenalty(model, 1e-4)
        loss = task_loss + penalty()[0]

    L is :func:`iso_d2.isometry.orthogonality_loss`, or with mode "spectral"
    :class:`iso_d2.isometry.SpectralPenalty`. Under autocast, too, it is computed in float32.

    Under DistributedDataParallel each of P processes takes a share of the layers, of about the same cost,
    with P times the coefficient. Gradients are averaged there, and their mean is that of the whole penalty;
    so its cost falls with P. (With "spectral" as far as the power iteration has converged.) An optimizer
    whose state is divided, ``ZeroRedundancyOptimizer``, changes nothing. Under FSDP every process computes
    the whole penalty, after a forward pass that leaves the weights whole.

    Args:
        model (nn.Module): the model, wrapped for data-parallel training or not.
        coeff (float): gamma.
        mode (str): "paper", "exact" or "spectral".
        include, exclude: as of :func:`penalised_layers`.
        fraction (float): of the frequencies of each kernel, drawn at random at each call, see
            :func:`iso_d2.isometry.orthogonality_losses`; 1 is exact, less is a cheaper, unbiased estimate,
            drawn by PyTorch's default generator of the weights' device.
        bound (float): of the singular values, with mode "spectral".
        precision (str): "float32" or "tf32", as of :func:`iso_d2.isometry.orthogonality_losses`; the spectral
            penalty is always computed in float32.

    Attributes:
        layers (dict[str, nn.Module]): all that are penalised.
        convs (dict[str, nn.Module]): those of this process.
        processes (int): how many share the layers.

    Raises:
        ValueError: unknown mode or precision; coefficient, fraction or bound out of range; a fraction below 1
            with "spectral"; as of :func:`penalised_layers`.
    """

    def __init__(
        self,
        model,
        coeff,
        mode="paper",
        include=None,
        exclude=(),
        fraction=1.0,
        bound=1.3,
        precision="float32",
    ):
        check_penalty(coeff, mode, fraction, bound, precision)
        self.coeff, self.mode, self.fraction, self.precision = coeff, mode, fraction, precision
        self.layers = self.convs = penalised_layers(unwrap(model), include, exclude)
        self.processes = 1
        # No other wrapper is known to average the gradients.
        if isinstance(model, DistributedDataParallel):
            self.processes = comm.get_world_size()
            self.convs = _share(self.layers, mode, comm.get_rank(), self.processes)
        self._others = [conv for name, conv in self.layers.items() if name not in self.convs]
        self._spectral = SpectralPenalty(self.convs.values(), bound) if mode == "spectral" else None

    def __call__(self):
        """Compute the penalty of the present weights.

        Returns:
            tuple[Tensor, Tensor]: what this process adds to its loss, without dimensions; L of each of
            `convs`, without gamma.

        Raises:
            ValueError: a weight that FSDP has sharded.
        """
        _check_whole(self.convs)
        if self._spectral is None:
            losses = orthogonality_losses(
                self.convs.values(), self.mode, self.fraction, precision=self.precision
            )
        else:
            losses = self._spectral()
        loss = self.coeff * self.processes * losses.sum()
        # A gradient of 0 for the other layers: DistributedDataParallel waits for one from every process.
        return sum((conv.weight[:0].sum() for conv in self._others), start=loss), losses

    def state_dict(self):
        """With mode "spectral" the vectors of this process's power iteration, else nothing."""
        return {} if self._spectral is None else self._spectral.state_dict()

    def load_state_dict(self, state):
        """Go on from the `state_dict` of an earlier penalty of the same layers."""
        if self._spectral is not None and state:
            self._spectral.load_state_dict(state)


def check_penalty(coeff, mode, fraction, bound, precision="float32"):
    """Raise a ValueError if these arguments of :class:`ModelPenalty` are out of range."""
    if isinstance(coeff, str) or not (math.isfinite(coeff) and coeff >= 0):
        raise ValueError(f"the penalty's coeff must be a finite number >= 0, got {coeff}")
    if mode not in ("paper", "exact", "spectral"):
        raise ValueError(f"orthogonality mode must be 'paper', 'exact' or 'spectral', got {mode!r}")
    orthogonality_losses([], "exact" if mode == "spectral" else mode, fraction, precision=precision)
    if mode == "spectral":
        SpectralPenalty([], bound)
        if fraction != 1:
            raise ValueError(f"the spectral penalty has no fraction of frequencies, got {fraction}")


def _default_layers(model, convs):
    roots = [name for name, module in model.named_modules() if isinstance(module, (ISONet, IsoBlock, UNet))]
    if roots:
        names = [n for n in convs if any(root == "" or n.startswith(root + ".") for root in roots)]
    elif scaled := [
        n for n, conv in convs.items() if isinstance(conv, (ScaledConv2d, ScaledConvTranspose2d))
    ]:
        # the only isometry of one channel is a shift
        names = [n for n in scaled if convs[n].weight.shape[1] > 1]
    elif isinstance(getattr(model, "backbone", None), nn.Module):
        names = [n for n in convs if re.match(r"backbone\.(?!fpn_|top_block\b)", n)]
    else:
        raise ValueError(
            f"{type(model).__name__} has neither an ISONet, a UNet nor a module `backbone`: name the "
            "layers to penalise in `include` (ISO.ORTHO.INCLUDE). "
            f"Its modules: {', '.join(name for name, _ in model.named_children())}"
        )
    unets = [module for module in model.modules() if isinstance(module, UNet)]
    outputs = {output for unet in unets for output in (unet.output, *unet.coarse_outputs.values())}
    return [n for n in names if convs[n] not in outputs and not _left_out_by_the_paper(convs[n])]


def _left_out_by_the_paper(conv):
    """7x7 kernels and 3-channel inputs, but not those with a gain, which start as isometries."""
    return getattr(conv, "gain", 1) == 1 and (conv.kernel_size == (7, 7) or conv.in_channels == 3)


def _check_whole(convs):
    # FSDP leaves a DTensor, a part in one dimension, or a tensor without memory; reading that crashes
    for name, conv in convs.items():
        weight = conv.weight
        in_place = weight.dim() == 4 and weight.untyped_storage().nbytes() >= weight.nbytes
        if hasattr(weight, "full_tensor") or not in_place:
            raise ValueError(
                f"the weight of {name} is sharded, but the orthogonality penalty needs whole weights. Wrap "
                "the model in DistributedDataParallel, which also divides the penalty among the processes, "
                "or let FSDP keep the weights whole after the forward pass: fully_shard with "
                "reshard_after_forward=False for every module, or FullyShardedDataParallel with "
                "ShardingStrategy.SHARD_GRAD_OP. Compute the penalty after the forward pass."
            )


def _share(convs, mode, process, processes):
    """The convolutions of one process: the most costly first, each to the process with the least so far."""
    mode = "exact" if mode == "spectral" else mode  # the same layers are the large ones
    cost = {name: orthogonality_multiply_adds(conv, mode) for name, conv in convs.items()}
    shares = [{} for _ in range(processes)]
    for name in sorted(convs, key=cost.get, reverse=True):
        least = min(shares, key=lambda share: sum(cost[name] for name in share))
        least[name] = convs[name]
    return shares[process]
