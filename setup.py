"""Installs iso_d2 beside a torch and a Detectron2 that are there already; importing neither."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
configs = ["iso_d2.configs"] + [
    f"iso_d2.configs.{folder.name}" for folder in sorted((root / "configs").iterdir()) if folder.is_dir()
]
version = re.search(r'^__version__ = "(.+)"$', (root / "iso_d2/__init__.py").read_text(), re.M).group(1)

setup(
    name="iso_d2",
    version=version,
    description="Isometric networks (no normalization layers) for detection and segmentation with Detectron2",
    license="Apache-2.0",
    packages=[*find_packages(include=["iso_d2", "iso_d2.*"]), *configs],
    package_dir={"iso_d2.configs": "configs"},
    package_data={
        "iso_d2": ["weights/*"],
        "iso_d2.data.lgg": ["*.tsv"],
        "iso_d2.reporting": ["page.*"],
        **{package: ["*.yaml", "*.py"] for package in configs},
    },
    entry_points={"console_scripts": ["iso-d2 = iso_d2.commands:main"]},
    python_requires=">=3.10",
    # Detectron2 is needed as well, but it is not on the package index: docs/trained.md says how to get it.
    install_requires=[
        "albumentations>=2.0",
        "fvcore",
        "iopath",
        "jinja2",
        "matplotlib",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pycocotools",
        "pyyaml",
        "safetensors",
        "scipy",
        "tabulate",
        "torch>=2.4",
        "torchvision",
        "tqdm",
    ],
    # for files of ONNX (iso-d2 export); for surface distances (TEST.SEGMENTATION.SPACING) and NIfTI volumes
    # (iso-d2 predict); for ISO.WRITERS
    extras_require={
        "export": ["onnx", "onnxruntime"],
        "medical": ["nibabel", "scipy<2", "surface-distance"],
        "mlflow": ["mlflow"],
        "wandb": ["wandb"],
    },
)
