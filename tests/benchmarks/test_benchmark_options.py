import pytest
import torch

from benchmarks.networks import isonet
from benchmarks.options import Options, tf32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device must be cpu or cuda"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"dtype": "tf32"}, "dtype tf32 is of GPUs"),
    ],
)
def test_unknown_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Options(**settings)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_and_channels_last(dtype):
    options = Options(depth=8, batch=1, size=(16, 16), dtype=dtype, channels_last=True)
    images = options.images()
    assert images.is_contiguous(memory_format=torch.channels_last)
    with options.autocast():
        features = isonet(options)(images)["res4"]
    assert features.dtype == getattr(torch, dtype)
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def precisions():
    """What a process may set, by torch's earlier and its present interface; all as before after the test."""
    yield torch.backends
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    torch.backends.cuda.matmul.fp32_precision = "none"


def now():
    """Whether convolutions and matrix products are rounded."""
    places = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    return tuple(place.fp32_precision == "tf32" for place in places)


def test_tf32_in_a_process_that_uses_torchs_earlier_interface(precisions):
    precisions.cuda.matmul.allow_tf32, precisions.cudnn.allow_tf32 = True, False
    with tf32(False):
        assert now() == (False, False)
        with tf32(True):
            assert now() == (True, True)
        assert now() == (False, False)
    assert precisions.cuda.matmul.allow_tf32 and not precisions.cudnn.allow_tf32


def test_tf32_in_a_process_that_uses_torchs_present_interface(precisions):
    precisions.fp32_precision = precisions.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):  # what this test is about: the earlier one cannot be asked here
        _ = precisions.cuda.matmul.allow_tf32
    with tf32(False):
        assert now() == (False, False)
    assert now() == (True, True)


def test_an_error_gives_the_precision_back():
    before = now()
    with pytest.raises(ValueError), tf32(True):
        raise ValueError
    assert now() == before
