"""Checkpoints as the ISONet authors' code writes them, with random weights, and their forward pass.

Written from the paper's description and the names in those files: plain tensors, no module of iso_d2.
"""

import torch
from torch.nn import functional as F

# depth: blocks and widths of the stages, bottleneck width factor or None
NETS = {
    18: ([2, 2, 2, 2], [64, 128, 256, 512], False),
    34: ([3, 4, 6, 3], [64, 128, 256, 512], False),
    50: ([3, 4, 6, 3], [256, 512, 1024, 2048], True),
    20: ([3, 3, 3], [16, 32, 64], False),
}


def random_net(depth, residual, cifar=False, num_classes=10):
    """dict[str, Tensor]: a state dict whose signals stay of order 1, so that every weight matters."""
    blocks, widths, bottleneck = NETS[depth]
    state = {}

    def conv(name, out_channels, in_channels, k):
        std = ((1.0 if residual else 2.0) / (in_channels * k * k)) ** 0.5
        state[f"{name}.weight"] = std * torch.randn(out_channels, in_channels, k, k)

    def srelu(name, channels):
        state[f"{name}.srelu_bias"] = -0.5 + 0.3 * torch.randn(1, channels, 1, 1)

    width = 16 if len(blocks) == 3 else 64
    conv("stem.conv", width, 3, 3 if cifar else 7)
    srelu("stem.relu", width)
    for s, (count, out) in enumerate(zip(blocks, widths, strict=True), start=1):
        for b in range(1, count + 1):
            name = f"s{s}.b{b}"
            if residual and b == 1 and (s > 1 or width != out):
                conv(f"{name}.proj", out, width, 1)
            inner = out // 4 if bottleneck else out
            kernels = [(inner, width, 1), (inner, inner, 3), (out, inner, 1)]
            if not bottleneck:
                kernels = [(out, width, 3), (out, out, 3)]
            for letter, shape in zip("abc", kernels, strict=False):
                conv(f"{name}.f.{letter}", *shape)
                if letter != "abc"[len(kernels) - 1]:
                    srelu(f"{name}.f.{letter}_relu", shape[0])
            if residual:
                state[f"{name}.f.shared_scalar.scale"] = 0.3 + 0.3 * torch.rand(1, 1, 1, 1)
            srelu(f"{name}.relu", out)
            width = out
    state["head.fc.weight"] = torch.randn(num_classes, width) / width**0.5
    state["head.fc.bias"] = torch.randn(num_classes)
    return state


def logits(state, depth, images):
    """(N, 3, H, W) -> (N, num_classes): the net's output, without dropout."""
    blocks, _, bottleneck = NETS[depth]

    def srelu(x, name):
        return torch.maximum(x, state[f"{name}.srelu_bias"])

    kernel = state["stem.conv.weight"]
    k = kernel.shape[-1]
    x = srelu(F.conv2d(images, kernel, stride=2 if k == 7 else 1, padding=k // 2), "stem.relu")
    if k == 7:
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    for s, count in enumerate(blocks, start=1):
        for b in range(1, count + 1):
            name, stride = f"s{s}.b{b}", 2 if s > 1 and b == 1 else 1
            if bottleneck:
                y = srelu(F.conv2d(x, state[f"{name}.f.a.weight"]), f"{name}.f.a_relu")
                y = F.conv2d(y, state[f"{name}.f.b.weight"], stride=stride, padding=1)
                y = F.conv2d(srelu(y, f"{name}.f.b_relu"), state[f"{name}.f.c.weight"])
            else:
                y = F.conv2d(x, state[f"{name}.f.a.weight"], stride=stride, padding=1)
                y = F.conv2d(srelu(y, f"{name}.f.a_relu"), state[f"{name}.f.b.weight"], padding=1)
            scale = state.get(f"{name}.f.shared_scalar.scale")
            if scale is not None:
                projection = state.get(f"{name}.proj.weight")
                x = x if projection is None else F.conv2d(x, projection, stride=stride)
                y = x + scale * y
            x = srelu(y, f"{name}.relu")
    return F.linear(x.mean(dim=(2, 3)), state["head.fc.weight"], state["head.fc.bias"])


def checkpoint(state):
    """What the authors' code saves: the state of a net in DataParallel, and more."""
    net = {f"module.{name}": tensor for name, tensor in state.items()}
    return {
        "net": net,
        "optim": {"state": {}},
        "epoch": 100,
        "train_accuracy": [70.0],
        "test_accuracy": [69.1],
    }
