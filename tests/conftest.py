"""What every test shares: no network, no GPU unless it asks for one, a cache of its own, the real data."""

import functools
import importlib.util
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch

CACHE = tempfile.mkdtemp(prefix="iso_d2-tests-")
ROOT = Path(__file__).resolve().parents[1]
NEARBY_DATA = ROOT.parent / "shared" / "datasets"

# The workshops beside the package: they are not installed with it.
sys.path.insert(0, str(ROOT))
# All of this before any test imports iso_d2.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["ISO_D2_CACHE"] = CACHE
if NEARBY_DATA.is_dir():
    os.environ.setdefault("DETECTRON2_DATASETS", str(NEARBY_DATA))
# Tests, and the processes that they start, see no GPU, so that they do the same on every machine. Those
# marked gpu(n) see all, or are skipped where there are fewer than n. The number is asked for first: the
# driver reads the variable once.
GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
VISIBLE = {
    "is_available": torch.cuda.is_available,
    "device_count": torch.cuda.device_count,
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
}
torch.cuda.is_available, torch.cuda.device_count = (lambda: False), (lambda: 0)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# More threads only get in each other's way on tensors as small as the tests' are.
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _gpus_for_those_that_ask(request, monkeypatch):
    marker = request.node.get_closest_marker("gpu")
    if marker is None:
        return
    if marker.args[0] > GPUS:
        pytest.skip(f"needs {marker.args[0]} GPUs, here are {GPUS}")
    for name in ("is_available", "device_count"):
        monkeypatch.setattr(torch.cuda, name, VISIBLE[name])
    if VISIBLE["CUDA_VISIBLE_DEVICES"] is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE["CUDA_VISIBLE_DEVICES"])


@pytest.fixture
def real_data():
    """Function that gives a path under the real data's root, or skips the test when it is not there."""

    def find(*parts):
        path = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), *parts).absolute()
        if not path.exists():
            pytest.skip(f"needs real data: {path} does not exist (set DETECTRON2_DATASETS)")
        return path

    return find


@pytest.fixture(scope="module")
def forked():
    """Detectron2's `launch` forks its processes: they need no imports, and know what the test has made."""
    with pytest.MonkeyPatch.context() as patch:
        start = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
        patch.setattr("torch.multiprocessing.start_processes", start)
        yield


@pytest.fixture
def toy_data(tmp_path):
    """The data sets toy_train and toy_test, as long as the test runs."""
    import engine_toys

    for name in ("toy_train", "toy_test"):
        engine_toys.register_toy_data(tmp_path, name)
    yield
    for name in ("toy_train", "toy_test"):
        engine_toys.unregister(name)


@pytest.fixture(scope="session")
def load_tool():
    """Function that imports a file of tools/, which is no package, or the command that it starts."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return sys.modules.get(module.main.__module__, module)

    return load


@pytest.fixture
def log(caplog):
    """What iso_d2 and fvcore log; Detectron2's setup_logger takes them off the root logger."""
    loggers = [logging.getLogger(name) for name in ("iso_d2", "fvcore")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="iso_d2"):
        yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


@pytest.fixture
def usual_handlers():
    """Those of a new process: a background job ignores SIGINT, and other tests may have set some."""
    usual = dict.fromkeys((signal.SIGTERM, signal.SIGUSR1), signal.SIG_DFL)
    usual[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
