"""The networks that are compared, and one training step of each."""

import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import ResNet, build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from iso_d2.engine import ModelPenalty
from iso_d2.engine.choices import penalty_coefficient, penalty_mode
from iso_d2.engine.model_penalty import penalised_layers
from iso_d2.engine.setup import load_config
from iso_d2.isometry import SReLU
from iso_d2.isometry.model import find_convolutions
from iso_d2.modeling import IsoBlock, ISONet

from .options import ROOT

# Of residual scales, which start at 0 but do not stay there
SCALE = 0.1


def isonet(options, **arguments):
    """R-ISONet as if in the midst of training: no kernel is a delta and no scale 0 any more."""
    torch.manual_seed(options.seed)
    stem = "cifar" if options.cifar else "imagenet"
    net = ISONet(options.depth, True, stem=stem, scale_init=SCALE, **arguments)
    return unsettle_(_placed(net, options))


@torch.no_grad()
def unsettle_(net):
    """Add noise to all kernels in place; returns the network."""
    for conv in find_convolutions(net).values():
        conv.weight.add_(torch.randn_like(conv.weight), alpha=0.1 / conv.weight[0].numel() ** 0.5)
    return net


def resnet(options, norm):
    """Detectron2's ResNet of the same layout, its stride on the 3x3 as in ISONet, nothing frozen.

    Its last stage is the output. `norm` is "BN", "FrozenBN" or "GN".
    """
    name, last = (
        ("build_cifar_resnet_backbone", "res4") if options.cifar else ("build_resnet_backbone", "res5")
    )
    opts = ["MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.FREEZE_AT", 0, *resnet_depth(options)]
    opts += ["MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.STRIDE_IN_1X1", False]
    cfg = load_config("", ["MODEL.DEVICE", options.device, "MODEL.RESNETS.OUT_FEATURES", [last], *opts])
    torch.manual_seed(options.seed)
    return calibrate_(_placed(build_backbone(cfg), options), options)


def resnet_depth(options):
    """The depth of a ResNet as KEY VALUE pairs."""
    narrow = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64] if options.depth in (18, 34) else []
    return ["MODEL.RESNETS.DEPTH", options.depth, *narrow]


@torch.no_grad()
def calibrate_(net, options):
    """Give each frozen batch norm of a backbone the mean and variance of its input; returns the network.

    With 0 and 1, features would grow from block to block, and a detector would have other proposals, and
    other costs, than a trained one.
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


def norms(options):
    """The norms to compare with; the 16 channels of the CIFAR nets cannot be split into 32 groups."""
    return ("BN", "FrozenBN") if options.cifar else ("BN", "FrozenBN", "GN")


def networks(options):
    """dict[str, nn.Module]: R-ISONet and all that it is compared with, by name, in training mode."""
    found = {f"R-ISONet-{options.depth}": isonet(options)}
    found |= {f"ResNet-{options.depth} {norm}": resnet(options, norm) for norm in norms(options)}
    if not options.cifar:
        torch.manual_seed(options.seed)
        whole = getattr(torchvision.models, f"resnet{options.depth}")(weights=None)
        without_classifier = nn.Sequential(*list(whole.children())[:-2])
        found[f"torchvision ResNet-{options.depth} BN"] = _placed(without_classifier, options)
    return found


def _placed(net, options):
    return net.to(options.device, memory_format=options.memory_format)


class PlainSReLU(SReLU):
    """relu(x - b) + b as the paper's code has it, of x or of a sum, as separate operations."""

    def forward(self, x, residual=None):
        x = x if residual is None else x + residual
        bound = self.threshold.view(-1, 1, 1).to(x.dtype)
        return F.relu(x - bound, inplace=True) + bound


class PlainBlock(IsoBlock):
    """x + s * f(x) as separate operations."""

    def forward(self, x):
        if not self.residual:
            return super().forward(x)
        return self.srelu(self.scale(self.branch(x)), x if self.shortcut is None else self.shortcut(x))


def plain_form_(net):
    """Let an ISONet compute by the operators of the paper's code, in place; returns the network."""
    plain = {SReLU: PlainSReLU, IsoBlock: PlainBlock}
    for module in net.modules():
        module.__class__ = plain.get(type(module), type(module))
    return net


def penalised_convs(net):
    """list[nn.Conv2d]: those of an ISONet that the trainer's penalty covers."""
    return list(penalised_layers(net).values())


def model_penalty(model, cfg):
    """ModelPenalty: of a config, as the trainer has it, to be called at every step."""
    options = {key.lower(): cfg.ISO.ORTHO[key] for key in ("INCLUDE", "EXCLUDE", "FRACTION", "BOUND")}
    return ModelPenalty(model, penalty_coefficient(cfg), penalty_mode(cfg), **options)


def load_model(config, options, opts=()):
    """The model of a config file under configs/ and of KEY VALUE pairs, and its config.

    Its weights are random, those of an ISONet or ResNet as in the midst of training.
    """
    opts = ["MODEL.DEVICE", options.device, "MODEL.ISONET.SCALE_INIT", SCALE, *opts]
    cfg = load_config(ROOT / "configs" / config, opts)
    torch.manual_seed(options.seed)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, ISONet):
            unsettle_(module)
        elif isinstance(module, ResNet):
            calibrate_(module, options)
    return model.to(memory_format=options.memory_format), cfg


def detection_batch(options, num_classes):
    """Images with four random boxes each, as Detectron2's detectors take them in training: list[dict]."""
    generator = torch.Generator().manual_seed(options.seed)
    height, width = options.detector_size
    batch = []
    for _ in range(options.detector_batch):
        corner = torch.rand(4, 2, generator=generator) * 0.5
        extent = 0.1 + 0.4 * torch.rand(4, 2, generator=generator)
        boxes = Boxes(torch.cat([corner, corner + extent], dim=1) * torch.tensor([width, height] * 2))
        classes = torch.randint(num_classes, (4,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        instances = Instances((height, width), gt_boxes=boxes, gt_classes=classes)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def training_loss(model, batch, options):
    """What backward starts from: the sum of a model's losses.

    Of a backbone it is the mean of the last features, which stands in for the loss of a classifier.
    """
    with EventStorage(), options.autocast():
        outputs = model(batch)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    return outputs[-1].float().mean() if outputs[-1].dim() else sum(outputs)


def training_step(model, options, batch=None, optimizer=None, penalty=None):
    """A function of a batch, by default `batch`, that makes one step; gradients are gone after it.

    `model` is a backbone or a meta-architecture, `optimizer` one of its parameters (None: forward and
    backward alone), `penalty` a function that returns what is added to the loss.
    """

    def step(batch=batch):
        loss = training_loss(model, batch, options)
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step
