"""What the tests of the penalty's cost share."""

import contextlib

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """The operators that were called, each a kernel on a GPU: not views, nor what only makes a tensor.

    With `skipping`, products that are told where to write are counted but not done.
    """

    def __init__(self, skipping=False):
        super().__init__()
        self.names, self.devices = [], []
        self.skipping = skipping

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        name = func.__name__.split(".")[0].rstrip("_")
        if not is_view and not name.startswith(("empty", "new_empty", "_unsafe_view", "promote_types")):
            self.names.append(name)
            self.devices.append(kwargs.get("device"))
        return kwargs["out"] if self.skipping and "mm" in name and "out" in kwargs else func(*args, **kwargs)


def rounded_products(monkeypatch, module):
    """A list that gets the name of every product computed within TF32, for which `module` has a stand-in."""
    rounded = []

    @contextlib.contextmanager
    def counted(device, tf32=False):
        with Calls() as calls:
            yield
        rounded.extend(name for name in calls.names if tf32 and "mm" in name)

    monkeypatch.setattr(module, "matmul_precision", counted)
    return rounded


def resnet50_shapes(width):
    """(inputs, outputs, kernel size, stride) of the 52 convolutions after a ResNet-50's stem: 22 kinds."""
    shapes, inputs = [], width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, stride = width * 2**stage, 1 if stage == 0 else 2
        shapes.append((inputs, 4 * inner, 1, stride))
        for block in range(blocks):
            shapes.append((inputs, inner, 1, 1))
            shapes.append((inner, inner, 3, stride if block == 0 else 1))
            shapes.append((inner, 4 * inner, 1, 1))
            inputs = 4 * inner
    return shapes
