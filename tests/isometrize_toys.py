"""Small networks for the tests of isometrize, and what these ask of a network."""

import torch
from torch import nn


def conv_norm(inputs, outputs, kernel_size=3, stride=1):
    conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A block as torchvision's: one ReLU for all calls, the sum in place."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.first, self.second = conv_norm(inputs, outputs, 3, stride), conv_norm(outputs, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_norm(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        out = self.second(self.relu(self.first(x)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def resnet():
    """A block without a projection and one with it."""
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    return nn.Sequential(conv_norm(3, 8), nn.ReLU(inplace=True), Block(8, 8), Block(8, 16, 2), *head)


class Made(nn.Module):
    """A network whose forward pass is function(network, x), with these modules and convolutions a, b, c."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.end = nn.ReLU(), nn.Conv2d(8, 2, 1)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def images(*shape, seed=0):
    return torch.randn(shape or (4, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


def kinds(network, cls):
    return [name for name, module in network.named_modules() if isinstance(module, cls)]


def watch(network, name_or_type, what="output"):
    """List that the tensors which these modules read or give are appended to."""
    seen = []

    def hook(module, args, output):
        seen.append((output if what == "output" else args[0]).detach().clone())

    for name, module in network.named_modules():
        if name == name_or_type or (isinstance(name_or_type, type) and isinstance(module, name_or_type)):
            module.register_forward_hook(hook)
    return seen


def mean_square(x):
    return x.square().mean().item()
