"""What is to be measured, and on what it ran."""

import contextlib
import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from ..modeling.isonet import LAYOUTS

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PACKAGES = ("torch", "torchvision", "detectron2", "sal-detectron2", "albumentations", "numpy", "iso_d2")


@dataclass(frozen=True)
class Options:
    """Settings that all parts share.

    Args:
        device (str): "cpu" or "cuda".
        dtype (str): "float32"; "bfloat16" and "float16" are mixed precision in training (autocast, without
            the scaling of the loss that the trainer adds for float16) and the type of weights and images in
            inference.
        channels_last (bool): memory format of images and networks.
        batch (int or None): images a step of classifiers; None: 4 on a CPU, 64 on a GPU.
        size (tuple[int, int]): their height and width.
        detector_batch (int or None): images a step of detectors; None: 1 on a CPU, 16 on a GPU.
        detector_size (tuple[int, int] or None): None: 320x320 on a CPU, 800x1333 on a GPU.
        depth (int): of all networks: 18, 34, 50, 101, 152, or 6n+2 for the narrow CIFAR nets.
        repeats (int): most rounds of a comparison.
        seed (int): of weights and images.

    Raises:
        ValueError: an unknown device or dtype, no CUDA device where one is asked for.
    """

    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = False
    batch: int | None = None
    size: tuple = (224, 224)
    detector_batch: int | None = None
    detector_size: tuple | None = None
    depth: int = 50
    repeats: int = 15
    seed: int = 0

    def __post_init__(self):
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"benchmark device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("benchmark device is cuda, but torch sees no CUDA device: take cpu")
        if self.dtype not in DTYPES:
            raise ValueError(f"benchmark dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        on_gpu = self.device == "cuda"
        defaults = {
            "batch": 64 if on_gpu else 4,
            "detector_batch": 16 if on_gpu else 1,
            "detector_size": (800, 1333) if on_gpu else (320, 320),
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def cifar(self):
        """Whether `depth` is one of the narrow CIFAR nets."""
        return self.depth not in LAYOUTS

    @property
    def has_targets(self):
        """Whether the targets speak of these settings: they are for depth 50."""
        return self.depth == 50

    @property
    def memory_format(self):
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self):
        """The context of a training step's forward pass."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=DTYPES[self.dtype])

    def images(self, batch=None, size=None):
        """Normalised images (batch, 3, *size), float32, on the device."""
        generator = torch.Generator().manual_seed(self.seed)
        images = torch.randn(batch or self.batch, 3, *(size or self.size), generator=generator)
        return images.to(self.device, memory_format=self.memory_format)


def describe_run():
    """What a measurement depends on beside its settings.

    Returns:
        dict: date (UTC), commit ("+changes" where files differ from it), versions, processor, cores, threads
        and, where there is one, the GPU with the precision of its float32 products.
    """
    described = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
        described["cuda"] = torch.version.cuda
        described["tf32"] = {
            "convolution": torch.backends.cudnn.allow_tf32,
            "matmul": torch.backends.cuda.matmul.allow_tf32,
        }
    return described


def _commit():
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _versions():
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield package, metadata.version(package)


def _processor():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
