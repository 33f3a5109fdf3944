"""Where a measurement comes from: versions, hardware and commit, for every json that holds one."""

import contextlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

# In the folder of a run: how it was started, each time
RUNS = "run.json"
PACKAGES = ("torch", "torchvision", "numpy", "albumentations", "iso_d2")


def versions():
    """dict[str, str]: of Python, Detectron2 and the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    # Its wheels have several names, so that its version is its own word.
    with contextlib.suppress(ImportError):
        import detectron2

        found["detectron2"] = detectron2.__version__
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def hardware(device, threads):
    """What a run ran on; the name of the machine is not told.

    Args:
        device (str or torch.device): of the run.
        threads (int or list[int]): of the run, or of its parts.

    Returns:
        dict: ``cpu``, ``cores``, ``threads``, ``gpu`` (None on a CPU); with a GPU also ``cuda`` and ``tf32``.
    """
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        model = found[1].strip() if found else model
    described = {"cpu": model, "cores": os.cpu_count(), "threads": threads, "gpu": None}
    if str(device).startswith("cuda"):
        described["gpu"] = _gpu_name()
        described["cuda"] = torch.version.cuda
        # `allow_tf32` raises in a process that has set these
        places = {"convolution": torch.backends.cudnn.conv, "matmul": torch.backends.cuda.matmul}
        described["tf32"] = {name: place.fp32_precision == "tf32" for name, place in places.items()}
    return described


def _gpu_name():
    """str: of the first GPU. A process that has not used it asks the driver: a context would take memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown GPU"


def git_state(root):
    """The state of a checkout.

    Args:
        root (str or Path): its folder.

    Returns:
        dict: ``commit``, "unknown" outside of a checkout or without git; ``dirty``, whether tracked Python or
        yaml files differ from it.
    """

    def git(*args):
        run = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else None

    try:
        commit = git("rev-parse", "--short", "HEAD")
    except FileNotFoundError:
        commit = None
    if commit is None:
        return {"commit": "unknown", "dirty": False}
    changes = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml")
    return {"commit": commit, "dirty": bool(changes)}
