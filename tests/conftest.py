"""What every test shares: no network, a cache of its own, and the real data where there is some."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

CACHE = tempfile.mkdtemp(prefix="iso_d2-tests-")
NEARBY_DATA = Path(__file__).resolve().parents[2] / "shared" / "datasets"

# All of this before any test imports iso_d2.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["ISO_D2_CACHE"] = CACHE
if NEARBY_DATA.is_dir():
    os.environ.setdefault("DETECTRON2_DATASETS", str(NEARBY_DATA))
# More threads only get in each other's way on tensors as small as the tests' are.
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def real_data():
    """Function that gives a path under the real data's root, or skips the test when it is not there."""

    def find(*parts):
        path = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), *parts).absolute()
        if not path.exists():
            pytest.skip(f"needs real data: {path} does not exist (set DETECTRON2_DATASETS)")
        return path

    return find
