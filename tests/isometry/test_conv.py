"""The precision of matrix products on a GPU."""

import pytest
import torch

from iso_d2.isometry._conv import matmul_precision


@pytest.fixture
def matmul():
    """The settings of CUDA's matrix products, set back afterwards."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    yield settings
    # what follows the setting of all backends goes on to do so
    settings.fp32_precision = "none" if before == torch.backends.fp32_precision else before


@pytest.mark.parametrize("before", ["tf32", "ieee"])
def test_the_precision_is_set_for_a_gpu_alone_and_set_back(matmul, before):
    matmul.fp32_precision = before
    cuda = torch.device("cuda")
    with pytest.raises(KeyError), matmul_precision(cuda):
        assert matmul.fp32_precision == "ieee"
        with matmul_precision(cuda, tf32=True):
            assert matmul.fp32_precision == "tf32"
        with matmul_precision(torch.device("cpu"), tf32=True):
            assert matmul.fp32_precision == "ieee"
        raise KeyError
    assert matmul.fp32_precision == before


@pytest.mark.parametrize("before", [True, False])
def test_it_goes_with_the_older_setting(matmul, before):
    matmul.allow_tf32 = before
    try:
        with matmul_precision(torch.device("cuda"), tf32=not before):
            pass
        assert matmul.allow_tf32 is before
    finally:
        matmul.allow_tf32 = False


def test_it_goes_on_to_follow_the_setting_of_all_backends(matmul):
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "tf32"
        matmul.fp32_precision = "none"
        with matmul_precision(torch.device("cuda")):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = before
