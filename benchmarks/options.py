"""What is to be measured: device, precision, sizes, and the images of that size."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

from iso_d2.modeling.isonet import LAYOUTS

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# As the results call them
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}
DEFAULTS = {
    "cpu": {"batch": 4, "detector_batch": 1, "detector_size": (320, 320)},
    "cuda": {"batch": 64, "detector_batch": 16, "detector_size": (800, 1333)},
}


@dataclass(frozen=True)
class Options:
    """Settings that all parts share. An unknown device or dtype, or a missing GPU, is a ValueError.

    bfloat16 and float16 are mixed precision in training (autocast, without the loss scaling that the trainer
    adds for float16), and the type of weights and images in inference. tf32 is float32 whose products a GPU
    rounds the operands of.
    """

    device: str = "cpu"  # or "cuda"
    dtype: str = "float32"  # or "tf32", "bfloat16", "float16"
    channels_last: bool = False  # memory format of images and networks
    batch: int | None = None  # images a step of classifiers; by default 4, on a GPU 64
    size: tuple[int, int] = (224, 224)  # their height and width
    detector_batch: int | None = None  # images a step of detectors; by default 1, on a GPU 16
    detector_size: tuple[int, int] | None = None  # by default (320, 320), on a GPU (800, 1333)
    depth: int = 50  # of all networks: 18, 34, 50, 101, 152, or 6n+2 for the narrow CIFAR nets
    repeats: int = 15  # most rounds of a comparison
    seed: int = 0  # of weights and images

    def __post_init__(self):
        if self.device not in DEFAULTS:
            raise ValueError(f"benchmark device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("benchmark device is cuda, but torch sees no CUDA device: take cpu")
        if self.dtype not in DTYPES:
            raise ValueError(f"benchmark dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.dtype == "tf32" and self.device == "cpu":
            raise ValueError("benchmark dtype tf32 is of GPUs: take float32, or device cuda")
        for name, value in DEFAULTS[self.device].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def cifar(self):
        """Whether `depth` is one of the narrow CIFAR nets."""
        return self.depth not in LAYOUTS

    @property
    def has_targets(self):
        """Whether there are targets for these settings: they are for depth 50."""
        return self.depth == 50

    @property
    def memory_format(self):
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def precision(self):
        """str: of a training step, and of inference: float32, tf32, bf16 or fp16."""
        return PRECISIONS.get(self.dtype, self.dtype)

    @property
    def penalty_precision(self):
        """str: of what autocast leaves alone, the penalty above all: float32 or tf32."""
        return "tf32" if self.dtype == "tf32" else "float32"

    def autocast(self):
        """The context of a training step's forward pass."""
        if DTYPES[self.dtype] is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=DTYPES[self.dtype])

    def images(self):
        """Normalised images (batch, 3, *size), float32, on the device."""
        generator = torch.Generator().manual_seed(self.seed)
        images = torch.randn(self.batch, 3, *self.size, generator=generator)
        return images.to(self.device, memory_format=self.memory_format)

    def describe(self, shape):
        """str: the shape of an input with the type and layout of these options, for titles."""
        return f"{'x'.join(map(str, shape))} {self.dtype}{', channels last' if self.channels_last else ''}"


@contextlib.contextmanager
def tf32(enabled):
    """Whether a GPU may round the operands of float32 convolutions and matrix products to TF32.

    Set by ``allow_tf32``, which torch.compile reads, unless the process has set ``fp32_precision`` to what
    the former cannot say; then torch raises where the former is read, and the latter is set here, too.
    """
    places, name, value = (torch.backends.cudnn, torch.backends.cuda.matmul), "allow_tf32", enabled
    try:
        before = [place.allow_tf32 for place in places]
    except RuntimeError:
        places = torch.backends.cudnn.conv, torch.backends.cuda.matmul
        name, value = "fp32_precision", "tf32" if enabled else "ieee"
        before = [place.fp32_precision for place in places]
    try:
        for place in places:
            setattr(place, name, value)
        yield
    finally:
        for place, earlier in zip(places, before, strict=True):
            setattr(place, name, earlier)
