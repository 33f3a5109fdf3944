"""The networks that are compared, and one step of each."""

import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from ..engine import ModelPenalty
from ..engine.choices import penalty_coefficient, penalty_mode
from ..engine.setup import load_config
from ..isometry import SharedScale, SReLU
from ..isometry.model import unwrap
from ..modeling import IsoBlock, ISONet
from .options import ROOT

CONFIGS = ROOT / "configs"


def isonet(options, depth=None, **arguments):
    """R-ISONet of a depth as if in the midst of training: no kernel is a delta and no scale 0 any more.

    Args:
        options (Options): depth, device, memory format and seed are read.
        depth (int or None): in place of the options' own.
        arguments: more of those of ISONet.

    Returns:
        ISONet
    """
    stem = "cifar" if options.cifar else "imagenet"
    return _placed(
        unsettle_(ISONet(depth or options.depth, True, stem=stem, **arguments), options.seed), options
    )


@torch.no_grad()
def unsettle_(net, seed=0):
    """Add noise to all kernels and set all residual scales to 0.1, in place; returns the network."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            weight = module.weight
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(noise, alpha=0.1 / weight[0].numel() ** 0.5)
        elif isinstance(module, SharedScale):
            module.scale.fill_(0.1)
    return net


def resnet(options, norm, depth=None):
    """Detectron2's ResNet of the same layout, its stride on the 3x3 as in ISONet, nothing frozen.

    Args:
        options (Options): as for `isonet`.
        norm (str): "BN", "FrozenBN", "GN", ...
        depth (int or None): in place of the options' own.

    Returns:
        ResNet: its last stage is the output.
    """
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    node = cfg.MODEL.RESNETS
    node.DEPTH, node.NORM, node.STRIDE_IN_1X1 = depth or options.depth, norm, False
    node.OUT_FEATURES = ["res4" if options.cifar else "res5"]
    if node.DEPTH in (18, 34):
        node.RES2_OUT_CHANNELS = 64
    name = "build_cifar_resnet_backbone" if options.cifar else "build_resnet_backbone"
    torch.manual_seed(options.seed)
    return calibrate_(_placed(BACKBONE_REGISTRY.get(name)(cfg, ShapeSpec(channels=3)), options), options)


@torch.no_grad()
def calibrate_(net, options):
    """Give each frozen batch norm of a backbone the mean and variance of its input, as after training.

    At their start, with 0 and 1, features grow from block to block, so that a detector has other proposals,
    and other costs, than a trained one.

    Args:
        net (nn.Module): takes images.
        options (Options): the images.

    Returns:
        nn.Module: `net`.
    """

    def take(norm, inputs):
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3), correction=0))

    handles = [m.register_forward_pre_hook(take) for m in net.modules() if isinstance(m, FrozenBatchNorm2d)]
    if handles:
        net(options.images())
    for handle in handles:
        handle.remove()
    return net


def torchvision_resnet(options):
    """torchvision's ResNet with batch norm, without its classifier."""
    torch.manual_seed(options.seed)
    whole = getattr(torchvision.models, f"resnet{options.depth}")(weights=None)
    return _placed(nn.Sequential(*list(whole.children())[:-2]), options)


def norms(options):
    """The norms to compare with; the 16 channels of the CIFAR nets cannot be split into 32 groups."""
    return ("BN", "FrozenBN") if options.cifar else ("BN", "FrozenBN", "GN")


def networks(options):
    """dict[str, nn.Module]: R-ISONet and all that it is compared with, by name, in training mode."""
    found = {f"R-ISONet-{options.depth}": isonet(options)}
    found |= {f"ResNet-{options.depth} {norm}": resnet(options, norm) for norm in norms(options)}
    if not options.cifar:
        found[f"torchvision ResNet-{options.depth} BN"] = torchvision_resnet(options)
    return found


def _placed(net, options):
    return net.to(options.device, memory_format=options.memory_format)


class PlainSReLU(nn.Module):
    """relu(x - b) + b as the paper's code has it, with the threshold of an SReLU."""

    def __init__(self, srelu):
        super().__init__()
        self.threshold = srelu.threshold

    def forward(self, x):
        bound = self.threshold.view(-1, 1, 1).to(x.dtype)
        return F.relu(x - bound, inplace=True) + bound


class PlainBlock(nn.Module):
    """x + s * f(x) as separate operations, with the layers of an IsoBlock."""

    def __init__(self, block):
        super().__init__()
        self.branch, self.shortcut = block.branch, block.shortcut or nn.Identity()
        self.scale, self.srelu = block.scale or nn.Identity(), block.srelu
        self.residual = block.scale is not None

    def forward(self, x):
        out = self.scale(self.branch(x))
        return self.srelu(out + self.shortcut(x) if self.residual else out)


def plain_form_(net):
    """Replace the operators of an ISONet by those of the paper's code, in place; returns the network."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, IsoBlock):
                setattr(module, name, PlainBlock(child))
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, SReLU):
                setattr(module, name, PlainSReLU(child))
    return net


def penalised_convs(net):
    """list[nn.Conv2d]: those of a backbone that the penalty covers: no 7x7 kernel, no image as input."""
    return [
        module
        for module in net.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size != (7, 7) and module.in_channels != 3
    ]


def feature_loss(net, images, options):
    """The mean of a backbone's last features, a stand-in for the loss of a classifier."""
    with options.autocast():
        features = net(images)
    if isinstance(features, dict):
        features = list(features.values())[-1]
    return features.float().mean()


def training_step(net, images, options, optimizer=None, penalty=None):
    """A function that makes one step: forward, backward and, with an optimizer, its step.

    Args:
        net (nn.Module): a backbone.
        images (Tensor): (N, 3, H, W).
        options (Options): precision.
        optimizer (torch.optim.Optimizer or None): of the net's parameters.
        penalty (callable or None): returns what is added to the loss.

    Returns:
        callable: without arguments; gradients are gone after it.
    """

    def step():
        loss = feature_loss(net, images, options)
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        net.zero_grad(set_to_none=True)

    return step


def load_model(config, options, opts=()):
    """The model of a config file, built with random weights, and its config.

    Args:
        config (str): relative to configs/.
        options (Options): device, memory format and seed.
        opts (sequence): KEY VALUE pairs.

    Returns:
        tuple[nn.Module, CfgNode]
    """
    cfg = load_config(CONFIGS / config, ["MODEL.DEVICE", options.device, *opts])
    torch.manual_seed(options.seed)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, ISONet):
            unsettle_(module, options.seed)
        elif isinstance(module, ResNet):
            calibrate_(module, options)
    return model.to(memory_format=options.memory_format), cfg


def add_penalty(model, cfg):
    """Let a model return the penalty of its config with its losses, as the trainer does, at every step.

    Args:
        model (nn.Module): under DistributedDataParallel, each process gets its share of the layers.
        cfg (CfgNode): ISO.ORTHO is read.

    Returns:
        RemovableHandle: its ``remove`` takes the penalty off again.
    """
    node = cfg.ISO.ORTHO
    penalty = ModelPenalty(
        model, penalty_coefficient(cfg), penalty_mode(cfg), include=node.INCLUDE, exclude=node.EXCLUDE
    )
    return unwrap(model).register_forward_hook(
        lambda model, inputs, losses: {**losses, "loss_ortho": penalty()[0]}
    )


def detection_batch(options, num_classes):
    """Images with four random boxes each, as Detectron2's detectors take them in training: list[dict]."""
    generator = torch.Generator().manual_seed(options.seed)
    height, width = options.detector_size
    batch = []
    for _ in range(options.detector_batch):
        corner = torch.rand(4, 2, generator=generator) * 0.5
        extent = 0.1 + 0.4 * torch.rand(4, 2, generator=generator)
        boxes = torch.cat([corner, corner + extent], dim=1) * torch.tensor([width, height] * 2)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(num_classes, (4,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def model_step(model, batch, options):
    """A function that makes one step of a Detectron2 model, forward and backward, on the same batch."""

    def step():
        with EventStorage(), options.autocast():
            losses = model(batch)
        sum(losses.values()).backward()
        model.zero_grad(set_to_none=True)

    return step
