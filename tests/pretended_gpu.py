"""A pretended GPU, to find out on any machine where a training step would wait for a real one.

Its tensors lie on the CPU and say that they are on cuda:0. As on a GPU, an operation on tensors of both
devices is an error. Each synchronisation is noted with the place in iso_d2 or Detectron2 that asks for it: a
value read on the host, an operation whose output has as many elements as the values say, a copy between the
devices that is not ``non_blocking``.
"""

import contextlib
import traceback
from collections import Counter
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"),
    *("equal", "bincount", "is_nonzero", "repeat_interleave"),
}
# They take tensors of both devices
COPIES = {"copy_", "_to_copy"}
GRADIENTS = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)


class OnGPU(torch.Tensor):
    """A tensor whose values are in `real_values`, on the CPU."""

    @staticmethod
    def __new__(cls, real, requires_grad=False):
        # as much of a storage as its strides reach
        reach = sum((n - 1) * s for n, s in zip(real.shape, real.stride(), strict=True)) + 1
        size = real.storage_offset() + (reach if real.numel() else 0)
        meta = torch.empty(size, dtype=real.dtype, device="meta")
        meta = meta.as_strided(real.shape, real.stride(), real.storage_offset())
        options = {"dispatch_device": True, "device_for_backend_keys": torch.device("cpu")}
        with torch._C.DisableTorchFunctionSubclass():
            tensor = torch.Tensor._make_subclass(cls, meta, requires_grad, **options)
        tensor.real_values = real
        return tensor

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on the pretended GPU outside of pretended_gpu()")


def _real(x):
    return x.real_values if isinstance(x, OnGPU) else x


def _place():
    """The innermost line of iso_d2 or Detectron2 that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = frame.filename.replace("\\", "/")
        if "/iso_d2/" in path or "/detectron2/" in path:
            package = "iso_d2" if "/iso_d2/" in path else "detectron2"
            return f"{package}/{path.rsplit(f'/{package}/', 1)[1]}:{frame.lineno} {frame.line}"
    return "elsewhere"


class _Dispatch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self.moving = self.in_gradient = False

    def wait(self, what):
        self.waits[f"{what} at {_place()}"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return torch.device("cpu")  # autograd runs its backward pass on the CPU
        name = func._schema.name.split("::")[1]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        pretended = [x for x in tensors if isinstance(x, OnGPU)]
        device = kwargs.get("device")
        device = None if device is None else torch.device(device)
        if device is not None and device.type == "cpu":
            # C++ code asks for the device that it takes the tensors to be on
            if pretended and not self.moving:
                device = kwargs.pop("device") and None
            elif not tensors and self.in_gradient:
                device = GPU
        on_gpu = bool(pretended) if device is None else device.type == "cuda"
        if pretended and name not in COPIES and any(x.dim() and not isinstance(x, OnGPU) for x in tensors):
            raise AssertionError(f"{func} of tensors on the CPU and on the GPU at {_place()}")
        self._note(name, args, kwargs, pretended, device)
        args, kwargs = tree_map(_real, args), tree_map(_real, kwargs)
        if device is not None:
            kwargs["device"] = torch.device("cpu") if device.type == "cuda" else device
        out = func(*args, **kwargs)
        if not on_gpu:
            return out
        same = {id(x.real_values): x for x in pretended}  # for operations in place

        def wrap(x):
            if not isinstance(x, torch.Tensor):
                return x
            return same[id(x)] if id(x) in same else OnGPU(x)

        return tree_map(wrap, out)

    def _note(self, name, args, kwargs, pretended, device):
        if name == "_to_copy" and device is not None and bool(pretended) != (device.type == "cuda"):
            if not kwargs.get("non_blocking"):
                self.wait("a blocking copy")
        elif name == "copy_" and isinstance(args[0], OnGPU) != isinstance(args[1], OnGPU):
            if not (len(args) > 2 and args[2]):
                self.wait("a blocking copy")
        elif pretended and (name in WAITING or (name.startswith("index") and _by_mask(args))):
            self.wait(name)


def _by_mask(args):
    indices = args[1] if isinstance(args[1], (list, tuple)) else []
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


class _Functions(TorchFunctionMode):
    """What C++ would answer from the device that it takes a tensor to be on."""

    def __init__(self, dispatch):
        super().__init__()
        self.dispatch = dispatch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            return self._move(func, *args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            made = args[0] if isinstance(args[0], torch.Tensor) else func(*args, **kwargs)
            return self._move(torch.Tensor.to, made, device)
        if args and isinstance(args[0], OnGPU):
            if func is torch.Tensor.tolist:
                self.dispatch.wait("tolist")
                return args[0].real_values.tolist()
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
        before, self.dispatch.in_gradient = self.dispatch.in_gradient, func in GRADIENTS
        try:
            return func(*args, **kwargs)
        finally:
            self.dispatch.in_gradient = before

    def _move(self, func, x, *args, non_blocking=False, memory_format=None, **kwargs):
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        if func is not torch.Tensor.to:
            device = "cuda" if func is torch.Tensor.cuda else "cpu"
        for value in args:
            if isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, bool):
                non_blocking = value
            elif value is not None:
                device = value
        moved = device is not None and torch.device(device).type != x.device.type
        options = {"dtype": dtype, "memory_format": memory_format, "device": device if moved else None}
        options = {key: value for key, value in options.items() if value is not None}
        if options.get("dtype", x.dtype) == x.dtype and options.keys() <= {"dtype"}:
            return x
        self.dispatch.moving = True
        try:
            return torch.ops.aten._to_copy.default(x, non_blocking=bool(non_blocking), **options)
        finally:
            self.dispatch.moving = False


@contextlib.contextmanager
def pretended_gpu():
    """Within it "cuda" is a pretended GPU; yields a Counter of what waited for it, by kind and place."""
    start_autocast = torch.autocast.__init__

    def autocast(self, device_type, *args, **kwargs):
        start_autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    dispatch = _Dispatch()
    with contextlib.ExitStack() as stack:
        for name, value in {
            "is_available": lambda: True,
            "_lazy_init": lambda: None,
            "current_device": lambda: 0,
            "synchronize": lambda *_: dispatch.wait("torch.cuda.synchronize"),
            "max_memory_allocated": lambda *_: 0,
        }.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", autocast))
        # Module.to then replaces parameters, whose type changes
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(_Functions(dispatch))
        stack.enter_context(dispatch)
        yield dispatch.waits
