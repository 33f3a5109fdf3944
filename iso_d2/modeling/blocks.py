"""The stem and the blocks of ISONet and R-ISONet, as in the code of the paper's authors.

Qi, You, Wang, Ma, Malik: Deep Isometric Learning for Visual Recognition, ICML 2020
(https://arxiv.org/abs/2006.16992).
"""

from collections import Counter, OrderedDict

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..isometry import SharedScale, SReLU, delta_init_


def _conv(in_channels, out_channels, kernel_size, stride=1, dilation=1):
    """A delta-initialised convolution without bias that keeps the size at stride 1."""
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size - 1) // 2,
        dilation=dilation,
        bias=False,
    )
    delta_init_(conv.weight)
    return conv


def _scaled_conv(x, conv, scale):
    """scale * conv(x), with the scale in the weight where that is the same."""
    hooks = conv._forward_hooks, conv._forward_pre_hooks, conv._backward_hooks, conv._backward_pre_hooks
    plain = type(conv) is nn.Conv2d and conv.bias is None and conv.padding_mode == "zeros"
    if not plain or any(hooks):
        # another module that somebody has put there, or one that is watched: it has to be called
        return scale * conv(x)
    return F.conv2d(x, scale * conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


class Stem(CNNBlockBase):
    """The first convolution with its SReLU; the "imagenet" kind adds max-pooling.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)

    Args:
        in_channels (int): channels of the image.
        out_channels (int): width.
        kind (str): "imagenet", a 7x7 convolution of stride 2 with PyTorch's default initialisation
            and 3x3 max-pooling of stride 2 (stride 4 in all), or "cifar", a delta-initialised 3x3
            convolution of stride 1.
        srelu_init (float): start of the SReLU thresholds.
        srelu_learnable (bool): whether the thresholds are learned.
    """

    def __init__(self, in_channels, out_channels, kind, srelu_init=-1.0, srelu_learnable=True):
        imagenet = kind == "imagenet"
        super().__init__(in_channels, out_channels, 4 if imagenet else 1)
        if imagenet:
            self.conv = nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False)
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv = _conv(in_channels, out_channels, 3)
            self.pool = nn.Identity()
        self.srelu = SReLU(out_channels, init=srelu_init, learnable=srelu_learnable, inplace=True)

    def forward(self, x):
        return self.pool(self.srelu(self.conv(x)))


class IsoBlock(CNNBlockBase):
    """A block of (R-)ISONet: ``srelu(f(x))``, or ``srelu(x + s * f(x))`` when residual.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)

    The branch f is 3x3, SReLU, 3x3, or with a bottleneck 1x1, SReLU, 3x3, SReLU, 1x1; the stride
    sits on the first 3x3. Where the shape changes, a 1x1 convolution projects x in the residual
    form. At the start a residual block without projection is exactly ``max(x, b)``.

    Args:
        in_channels (int): width of the input.
        out_channels (int): width of the output.
        stride (int): stride of the block.
        residual (bool): R-ISONet's form with a skip connection and one learnable scale s.
        bottleneck_channels (int or None): width of the 3x3 convolution between two 1x1; None for
            the basic block.
        dilation (int): dilation of the 3x3 convolutions.
        srelu_init (float): start of the SReLU thresholds b.
        srelu_learnable (bool): whether the thresholds are learned.
        scale_init (float): start of s.

    Source: paper, Sections 3 and 4.1; report, Section 3.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        stride,
        residual,
        bottleneck_channels=None,
        dilation=1,
        srelu_init=-1.0,
        srelu_learnable=True,
        scale_init=0.0,
    ):
        super().__init__(in_channels, out_channels, stride)
        if bottleneck_channels is None:
            convs = [
                _conv(in_channels, out_channels, 3, stride, dilation),
                _conv(out_channels, out_channels, 3, 1, dilation),
            ]
        else:
            convs = [
                _conv(in_channels, bottleneck_channels, 1),
                _conv(bottleneck_channels, bottleneck_channels, 3, stride, dilation),
                _conv(bottleneck_channels, out_channels, 1),
            ]
        branch = OrderedDict()
        for i, conv in enumerate(convs, start=1):
            branch[f"conv{i}"] = conv
            if i < len(convs):
                branch[f"srelu{i}"] = SReLU(
                    conv.out_channels, init=srelu_init, learnable=srelu_learnable, inplace=True
                )
        self.branch = nn.Sequential(branch)
        self.residual = residual
        self.scale = SharedScale(scale_init) if residual else None
        projects = residual and (in_channels != out_channels or stride != 1)
        self.shortcut = _conv(in_channels, out_channels, 1, stride) if projects else None
        # in place of the branch's output, never of the shortcut, which may be the input of the block
        self.srelu = SReLU(out_channels, init=srelu_init, learnable=srelu_learnable, inplace=True)

    def forward(self, x):
        if not self.residual:
            return self.srelu(self.branch(x))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if self.scale is None:
            return self.srelu(self.branch(x), shortcut)
        *inner, last = self.branch
        for module in inner:
            x = module(x)
        # s in the weight: s * f(x) would keep f(x) for the gradient of s
        return self.srelu(_scaled_conv(x, last, self.scale.scale), shortcut)

    @torch.no_grad()
    def fold_scale_(self):
        """Multiply s into the last convolution of the branch for good; the block has no scale afterwards.

        Raises:
            ValueError: that is no plain convolution, but one with a parametrization, weight norm or pruning,
                or another module.
        """
        if self.scale is None:
            return
        last = self.foldable_conv()
        last.weight.mul_(self.scale.scale)
        if last.bias is not None:
            last.bias.mul_(self.scale.scale)
        self.scale = None

    def foldable_conv(self):
        """The last convolution of the branch, if a scale can go into it; raises as :meth:`fold_scale_`."""
        last = self.branch[-1]
        # a subclass may do more than convolve, as Detectron2's Conv2d with a norm does
        if type(last) is not nn.Conv2d:
            raise ValueError(
                f"the residual scale goes into the weight of a plain convolution, got {type(last).__name__} "
                "at the end of a branch: remove its parametrization first"
            )
        # hooks of weight norm and pruning make the weight anew at each call, from other parameters
        if set(last._parameters) != {"weight", "bias"}:
            raise ValueError(
                "the residual scale goes into the weight of a plain convolution, got one with the parameters "
                f"{', '.join(last._parameters)} at the end of a branch: remove its weight norm or pruning"
            )
        return last


def fold_scales_(model):
    """Multiply the residual scale of every block into the last convolution of its branch, in place.

    For deployment: the outputs are the same to rounding, the weights are no longer multiplied at each
    call. Load the checkpoint first: a folded model has no `scale`, and other weights.

    Args:
        model (nn.Module): any model with ISONet blocks: a backbone, a whole detector.

    Returns:
        nn.Module: `model`.

    Raises:
        ValueError: something else in the model uses the last weight of a block, or a branch does not end with
            a plain convolution; then nothing is changed.
    """
    blocks = [module for module in model.modules() if isinstance(module, IsoBlock) and module.scale]
    # by how many names the model has each block and each parameter: a block may well have several
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for block in blocks:
        if any(names[id(p)] > places[id(block)] for p in block.foldable_conv().parameters()):
            raise ValueError(
                "the last weight or bias of a block is used elsewhere in the model, too, where the block's "
                "scale has no place: it cannot be folded"
            )
    for block in blocks:
        block.fold_scale_()
    return model


class IsoStage(nn.Sequential):
    """Blocks one after the other; when `checkpointed`, training keeps nothing but their input.

    Args:
        blocks (nn.Module): in their order.
        checkpointed (bool): compute what is between again in backward: less memory for one more forward
            pass.
    """

    def __init__(self, *blocks, checkpointed=False):
        super().__init__(*blocks)
        self.checkpointed = checkpointed

    def forward(self, x):
        if self.checkpointed and self.training and torch.is_grad_enabled():
            # nothing in a stage is random
            return checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)
        return super().forward(x)


def make_iso_stage(
    num_blocks,
    in_channels,
    out_channels,
    first_stride,
    residual,
    bottleneck=False,
    dilation=1,
    checkpointed=False,
    **block_args,
):
    """A stage: `num_blocks` blocks, of which the first changes width and size.

    Args:
        num_blocks (int): how many blocks.
        in_channels (int): width of the input.
        out_channels (int): width of every block's output.
        first_stride (int): stride of the first block.
        residual (bool): as in :class:`IsoBlock`.
        bottleneck (bool): bottleneck blocks, a quarter of `out_channels` wide, or basic ones.
        dilation (int): dilation of the 3x3 convolutions of every block.
        checkpointed (bool): as in :class:`IsoStage`.
        block_args: srelu_init, srelu_learnable, scale_init of :class:`IsoBlock`.

    Returns:
        IsoStage: of :class:`IsoBlock`.
    """
    return IsoStage(
        *(
            IsoBlock(
                in_channels if i == 0 else out_channels,
                out_channels,
                first_stride if i == 0 else 1,
                residual,
                bottleneck_channels=out_channels // 4 if bottleneck else None,
                dilation=dilation,
                **block_args,
            )
            for i in range(num_blocks)
        ),
        checkpointed=checkpointed,
    )
