import pytest
import torch

from benchmarks.networks import isonet
from benchmarks.options import Options


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"device": "tpu"}, "device must be cpu or cuda"), ({"dtype": "int8"}, "dtype must be one of float32")],
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
