import math
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import iso_d2.isometry
from iso_d2.isometry import SharedScale, SReLU, srelu_gain, srelu_mean_square, use_triton_srelu


def test_srelu_is_relu_shifted_by_the_threshold_of_each_channel():
    srelu = SReLU(3)
    srelu.threshold.data = torch.tensor([-1.0, 0.0, 0.5])
    x = torch.randn(4, 3, 5, 6)
    b = srelu.threshold.view(1, 3, 1, 1)
    torch.testing.assert_close(srelu(x), torch.relu(x - b) + b)
    torch.testing.assert_close(srelu(x[:, :, 0, 0]), (torch.relu(x - b) + b)[:, :, 0, 0])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 2, 3), (1, 3, 2, 2, 2)])
def test_srelu_gradient(shape):
    srelu = SReLU(3, init=0.1).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def call(x, threshold):
        return torch.func.functional_call(srelu, {"threshold": threshold}, x)

    assert torch.autograd.gradcheck(call, (x, srelu.threshold))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 2, 3)])
def test_srelu_of_a_sum_and_its_gradient(shape, inplace):
    srelu = SReLU(3, init=0.1, inplace=inplace).double()
    x, residual = torch.randn(2, *shape, dtype=torch.float64).requires_grad_()
    expected = torch.relu(x + residual - 0.1) + 0.1
    torch.testing.assert_close(srelu(x * 1, residual), expected)

    def call(x, residual, threshold):
        return torch.func.functional_call(srelu, {"threshold": threshold}, (x * 1, residual))

    assert torch.autograd.gradcheck(call, (x, residual, srelu.threshold))
    assert torch.autograd.gradgradcheck(call, (x, residual, srelu.threshold))


@pytest.mark.parametrize("gradients", [True, False])
def test_srelu_in_place_overwrites_its_input_alone(gradients):
    x, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    before = residual.clone()
    with torch.set_grad_enabled(gradients):
        y = SReLU(3, inplace=True)(x, residual)
        assert y.data_ptr() == x.data_ptr() != residual.data_ptr()
        torch.testing.assert_close(residual, before, rtol=0, atol=0)
        x = residual.clone()
        assert SReLU(3)(x, residual).data_ptr() not in (x.data_ptr(), residual.data_ptr())
        torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_srelu_of_a_sum_in_half_precision(dtype):
    x, residual = torch.randn(2, 4, 3, 8, 8).to(dtype)
    srelu = SReLU(3, init=-0.5)
    leaves = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
    y = srelu(*leaves)
    y.backward(torch.ones_like(y))
    total = x + residual
    assert y.dtype == dtype and torch.equal(y, total.clamp_min(-0.5))
    assert all(torch.equal(leaf.grad, (total > -0.5).to(dtype)) for leaf in leaves)
    expected = (total <= -0.5).sum((0, 2, 3)).float()
    assert expected.min() > 0
    torch.testing.assert_close(srelu.threshold.grad, expected)


def test_srelu_of_a_sum_promotes_like_a_sum():
    x, residual = torch.randn(2, 3), torch.randn(2, 3, dtype=torch.bfloat16)
    for first, second in ((x, residual), (residual, x)):
        y = SReLU(3, inplace=True)(first.clone(), second)
        torch.testing.assert_close(y, torch.relu(x + residual + 1) - 1)


def test_srelu_refuses_a_residual_of_another_shape():
    with pytest.raises(ValueError, match=r"residual of the input's shape \(2, 3, 4\), got \(2, 3, 1\)"):
        SReLU(3)(torch.zeros(2, 3, 4), torch.zeros(2, 3, 1))


def test_srelu_gives_the_gradient_of_ties_to_the_threshold():
    srelu = SReLU(1)
    x = torch.tensor([[-2.0], [-1.0], [3.0]], requires_grad=True)
    srelu(x).sum().backward()
    assert x.grad.flatten().tolist() == [0, 0, 1]
    assert srelu.threshold.grad.tolist() == [2]


def test_srelu_keeps_only_its_output_for_backward():
    saved = []
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = SReLU(8)(x)
    assert sum(t.nbytes for t in saved) == y.nbytes + 8 * 4
    assert y.data_ptr() in [t.data_ptr() for t in saved]


def test_srelu_in_bfloat16_sums_its_gradient_in_float32():
    srelu = SReLU(1)
    x = torch.full((1, 1, 100, 100), -2.0, dtype=torch.bfloat16, requires_grad=True)
    y = srelu(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    # bfloat16 has no 9999 to add to 10000; the nearest is 9984
    assert srelu.threshold.grad.item() == 10000


def test_srelu_casts_its_thresholds_once_a_step():
    casts = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default:
                casts.append(tuple(args[0].shape))
            return function(*args, **kwargs or {})

    x = torch.randn(2, 4, 3, dtype=torch.bfloat16, requires_grad=True)
    srelu = SReLU(4)
    with Watch():
        srelu(x * 1, x).sum().backward()
    assert casts == [(4,)]


def test_triton_missing_is_said_where_it_is_switched_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "iso_d2.isometry._srelu_kernels", raising=False)
    monkeypatch.delattr(iso_d2.isometry, "_srelu_kernels", raising=False)
    with pytest.raises(ImportError, match=r"kernels of SReLU need triton.*leave the kernels off"):
        use_triton_srelu()


def test_srelu_frozen_threshold():
    srelu = SReLU(4, init=-0.5, learnable=False)
    x = torch.randn(2, 4, requires_grad=True)
    srelu(x).sum().backward()
    assert srelu.threshold.grad is None
    torch.testing.assert_close(x.grad, (x > -0.5).float())
    assert srelu.state_dict()["threshold"].tolist() == [-0.5] * 4
    assert repr(srelu) == "SReLU(4, learnable=False)"
    assert repr(SReLU(4, inplace=True)) == "SReLU(4, learnable=True, inplace=True)"


def test_srelu_keeps_channels_last():
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = SReLU(4)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y = SReLU(4)(y, x)
    y.sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (8,)])
def test_srelu_names_the_shape_it_refuses(shape):
    with pytest.raises(
        ValueError, match=r"SReLU of 8 channels takes \(N, 8, ...\), got .*\(" + str(shape[0])
    ):
        SReLU(8)(torch.zeros(shape))


def test_srelu_needs_a_channel():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SReLU(0)


def small_model():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), SReLU(4), SharedScale(0.5))


def test_a_traced_model_gives_the_same():
    model, x = small_model(), torch.randn(1, 3, 8, 8)
    traced = torch.jit.trace(model, torch.randn(2, 3, 6, 6))
    torch.testing.assert_close(traced(x), model(x))
    # what an ONNX exporter could not translate
    assert "PythonOp" not in str(traced.inlined_graph)


def test_a_compiled_model_gives_the_same_gradient():
    model, x = small_model(), torch.randn(2, 3, 8, 8)
    expected = torch.autograd.grad(model(x).square().sum(), model[1].threshold)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), model[1].threshold), expected)


def test_a_compiled_srelu_gives_the_gradient_of_ties_to_the_threshold():
    srelu = SReLU(1)
    x = torch.tensor([[-2.0], [-1.0], [3.0], [float("nan")]], requires_grad=True)
    y = torch.compile(srelu, backend="eager", fullgraph=True)(x)
    y[:3].sum().backward()
    assert x.grad.flatten().tolist() == [0, 0, 1, 0]
    assert srelu.threshold.grad.tolist() == [2]
    assert y[3].isnan()


def test_an_exported_model_gives_the_same():
    model, x = small_model().eval(), torch.randn(1, 3, 8, 8)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def test_onnx_export(tmp_path):
    pytest.importorskip("onnx")
    model, x, path = small_model().eval(), torch.randn(1, 3, 8, 8), tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=False)
    assert path.stat().st_size > 0


def test_shared_scale_starts_at_zero_and_keeps_the_dtype():
    scale = SharedScale()
    x = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    assert scale.scale.shape == ()
    assert scale(x).dtype == torch.bfloat16
    assert not scale(x).any()
    scale(x.float()).sum().backward()
    torch.testing.assert_close(scale.scale.grad, x.float().sum())


@pytest.mark.parametrize("b", [-3.0, -1.0, -0.3, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("q", [1.0, 0.25, 3.0])
def test_the_mean_square_of_a_normal_input(b, q):
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    expected = torch.trapezoid((math.sqrt(q) * z).clamp(min=b).square() * density, z).item()
    assert srelu_mean_square(b, q) == pytest.approx(expected, rel=1e-8)
    if q == 1:
        assert srelu_gain(b) == pytest.approx(expected**-0.5, rel=1e-8)


def test_known_gains():
    assert srelu_gain(0) == pytest.approx(math.sqrt(2), rel=1e-12)
    assert srelu_gain(-math.inf) == 1
    assert srelu_gain(-40) == pytest.approx(1, rel=1e-12)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be a number below infinity"):
            srelu_gain(wrong)
    with pytest.raises(ValueError, match="must be a finite number above 0, got 0"):
        srelu_mean_square(-1, 0)


def test_a_scale_for_each_channel():
    scale = SharedScale(0.5, channels=3)
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(scale(x), torch.stack([x[:, 0], 2 * x[:, 1], 3 * x[:, 2]], dim=1))
    assert scale.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
