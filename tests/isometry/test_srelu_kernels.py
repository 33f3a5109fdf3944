"""SReLU's Triton kernels against plain autograd, on a GPU or in Triton's interpreter, which needs none.

Triton decides that where kernels are defined, so one test runs this file in a second process.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.activation import forward_and_backward, operators
from iso_d2.isometry import SReLU, activation, use_triton_srelu

triton = pytest.importorskip("triton", reason="needs triton, which comes with PyTorch for CUDA")
kernels = pytest.importorskip("iso_d2.isometry._srelu_kernels")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [(2, 3), (5, 130), (2, 3, 7), (1, 1, 9, 9), (3, 4, 1, 1), (2, 3, 2, 3, 5), (1, 3, 13, 15)]
CASES = [(shape, torch.float32) for shape in SHAPES] + [((2, 5, 7, 7), dtype) for dtype in kernels.DTYPES]
outside = pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
runs = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="no GPU: runs in the interpreter, within test_this_file_in_the_interpreter",
)


@outside
def test_this_file_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-8000:] + run.stderr[-2000:]


@outside
def test_the_kernels_are_imported_at_the_first_use():
    code = """
import sys, torch
import iso_d2.isometry as iso
assert "iso_d2.isometry._srelu_kernels" not in sys.modules
assert iso.SReLU(2)(torch.tensor([[-2.0, 3.0]])).tolist() == [[-1, 3]]
print("iso_d2.isometry._srelu_kernels" in sys.modules)
"""
    for switch in ("0", "1"):
        environment = {**os.environ, "TRITON_INTERPRET": "1", "ISO_D2_TRITON_SRELU": switch}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.stdout == f"{switch == '1'}\n", run.stderr


@outside
@pytest.mark.parametrize("last", [False, True])
def test_a_gpu_loads_many_values_at_once(last, tmp_path, monkeypatch):
    """The compiler needs no GPU. 64 channels are loaded by 8, 16 bytes; 196 pixels by 4."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x = torch.zeros(2, 64, 14, 14, dtype=torch.bfloat16)
    _, tile, _, _ = kernels._tiling(x.to(memory_format=torch.channels_last) if last else x)
    warps = {"num_warps": tile.pop("num_warps")}
    for kernel, flag in ((kernels._forward_kernel, "SUM"), (kernels._backward_kernel, "SUMS")):
        constants = {**tile, flag: True}
        pointers = {"threshold": "*fp32", "sums": "*fp32"}
        pointers |= dict.fromkeys(("x", "residual", "y", "grad", "passed"), "*bf16")
        signature = {name: pointers.get(name, "i32") for name in kernel.arg_names}
        signature |= dict.fromkeys(constants, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in pointers}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        for capability in (80, 90):
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=warps)
            loads = [line for line in compiled.asm["ptx"].splitlines() if "ld.global" in line]
            widest = ".v4.b32" if last else ".v2.b32"
            # the tensors by so many, the thresholds one by one
            assert any(widest in load for load in loads) and not any(".b16" in load for load in loads), loads


@pytest.fixture
def calls(monkeypatch):
    """Switches the kernels on; the names of the calls of them."""
    made = []

    def watch(name):
        function = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args: made.append(name) or function(*args))

    watch("forward")
    watch("backward")
    monkeypatch.setattr(activation, "_triton", False)
    use_triton_srelu()
    return made


def draw(shape, dtype, last=False):
    """Multiples of 1/8, whose sums need no rounding: the interpreter rounds to bfloat16 differently."""
    x = torch.randint(-24, 25, shape, device=DEVICE).div(8).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def results(inputs, upstream, threshold, inplace=False, learnable=True, function=None):
    """Output and gradients of SReLU, or of another function of the inputs and the threshold."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    srelu = SReLU(len(threshold), learnable=learnable, inplace=inplace).to(threshold)
    srelu.threshold.data.copy_(threshold)
    arguments = [x * 1 for x in leaves]
    y = function(*arguments, srelu.threshold) if function else srelu(*arguments)
    y.backward(upstream)
    return y.detach(), *(x.grad for x in leaves), srelu.threshold.grad


def compare(found, expected):
    for a, b in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert a.stride() == b.stride()
    torch.testing.assert_close(found[-1], expected[-1], equal_nan=True)


@runs
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_values_and_gradients_are_those_without_the_kernels(shape, dtype, last, calls):
    x, residual, upstream = (draw(shape, dtype, last) for _ in range(3))
    threshold = draw(shape[1:2], torch.float32)
    cases = [((x,), False, True), ((x, residual), True, True), ((x, residual), False, False)]
    for inputs, inplace, learnable in cases:
        found = results(inputs, upstream, threshold, inplace, learnable)
        with pytest.MonkeyPatch.context() as context:
            context.setattr(activation, "_triton", False)
            compare(found, results(inputs, upstream, threshold, inplace, learnable))
    assert calls == ["forward", "backward"] * len(cases)


@runs
@pytest.mark.parametrize("programs", [1, 5, 1024])
@pytest.mark.parametrize("last", [False, True])
def test_many_tiles_against_relu(last, programs, calls, monkeypatch):
    monkeypatch.setattr(kernels, "TILE", 64)
    monkeypatch.setattr(kernels, "WIDTH", 16)
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    shape = (3, 21, 5, 7)
    x, residual, upstream = (draw(shape, torch.float64, last) for _ in range(3))
    # no ties: there relu(x - b) + b rounds
    threshold = draw((21,), torch.float64) + 1 / 16

    def plain(x, residual, threshold):
        b = threshold.view(-1, 1, 1)
        return torch.relu(x + residual - b) + b

    found = results((x, residual), upstream, threshold)
    compare(found, results((x, residual), upstream, threshold, function=plain))
    assert calls == ["forward", "backward"]


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ties_infinities_and_nan(dtype, calls):
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([-2, -1, 3, nan, inf, -inf], dtype=dtype, device=DEVICE)
    threshold = torch.tensor([-1, nan, inf, -inf], device=DEVICE)
    x = values[:, None].repeat(1, 4)
    found = results((x,), torch.ones_like(x), threshold)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(activation, "_triton", False)
        compare(found, results((x,), torch.ones_like(x), threshold))
    y, grad, grad_threshold = found
    assert y[[0, 1, 2, 4, 5], 0].tolist() == [-1, -1, 3, inf, -1] and y[3, 0].isnan()
    assert grad[:, 0].tolist() == [0, 0, 1, 1, 1, 0] and grad_threshold[0] == 3
    assert y[:, 1].isnan().all() and calls == ["forward", "backward"]


@runs
def test_a_threshold_is_rounded_to_half_precision_first(calls):
    # the float16 nearest to 0.3 is above it, yet x is a tie
    x = torch.full((1, 1), 0.3, dtype=torch.float16, device=DEVICE)
    y, grad, grad_threshold = results((x,), torch.ones_like(x), torch.tensor([0.3], device=DEVICE))
    assert torch.equal(y, x) and grad.item() == 0 and grad_threshold.item() == 1


@runs
@pytest.mark.parametrize("last", [False, True])
def test_sums_are_float32_and_repeat(last, calls, monkeypatch):
    monkeypatch.setattr(kernels, "TILE", 1024)
    x = draw((1, 1, 100, 100), torch.bfloat16, last) - 10
    grad = results((x,), torch.ones_like(x), torch.zeros(1, device=DEVICE))[-1]
    assert grad.item() == 10000  # no bfloat16
    x, upstream = draw((2, 3, 40, 40), torch.float32, last), torch.randn(2, 3, 40, 40, device=DEVICE)
    first, second = (results((x,), upstream, torch.zeros(3, device=DEVICE))[-1] for _ in range(2))
    assert torch.equal(first, second)


@runs
def test_gradients_and_residuals_of_other_layouts(calls):
    x, residual = draw((2, 3, 4, 5), torch.float32, last=True), draw((2, 3, 4, 5), torch.float32)
    total, threshold = x + residual, torch.zeros(3, device=DEVICE)
    for upstream in (torch.ones(2, 3, 4, 5, device=DEVICE), torch.ones(1, device=DEVICE).expand(2, 3, 4, 5)):
        y, *grads, _ = results((x, residual), upstream, threshold)
        assert torch.equal(y, total.relu()) and y.stride() == x.stride()
        assert all(torch.equal(grad, (total > 0).float()) for grad in grads)
    x = draw((2, 3), torch.float32).requires_grad_()
    assert torch.equal(SReLU(3, init=0).to(DEVICE)(x, x), 2 * x.detach().relu())
    assert calls == ["forward", "backward"] * 2 + ["forward"]


@runs
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_without_gradients(grad, calls):
    x = draw((2, 3, 4), torch.float32)
    expected = x.clamp_min(-1)
    with grad():
        y = SReLU(3, inplace=True).to(DEVICE)(x)
    assert y.data_ptr() == x.data_ptr() and torch.equal(y, expected) and calls == ["forward"]


@runs
def test_offsets_beyond_32_bits(calls):
    depth = 2**30 + 64
    # pages that are not touched take no memory
    x = torch.empty(2 * depth + 64, dtype=torch.float16, device=DEVICE)
    x[:64], x[2 * depth :] = -2, -3
    b = torch.tensor([-1.0, 0.0, -2.5], device=DEVICE)
    tile = {"WIDE": triton.language.float32, "LAST": False, "UNIT": 16, "LINES": 1, "DEPTH": 64}
    # the first tile of each of three lines
    kernels._forward_kernel[(3,)](x, x, b, x, 3, depth, 3, SUM=False, **tile)
    assert set(x[:64].tolist()) == {-1} and set(x[2 * depth :].tolist()) == {-2.5}


@runs
def test_what_the_kernels_leave_to_pytorch(calls):
    srelu = SReLU(3, init=0).to(DEVICE)
    x = draw((4, 6, 5), torch.float32)
    assert torch.equal(srelu(x[:, :3]), x[:, :3].relu())  # neither layout
    assert srelu(x[:0, :3]).shape == (0, 3, 5)
    assert srelu(x[:, :3].contiguous().long()).dtype == torch.long
    assert torch.equal(torch.compile(srelu, backend="eager")(x[:, :3]), x[:, :3].relu())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert srelu(mode.from_tensor(x[:, :3].contiguous())).shape == (4, 3, 5)
    assert calls == []


@runs
def test_second_derivatives(calls):
    srelu = SReLU(3, init=0.1).to(DEVICE, torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def call(x, threshold):
        return torch.func.functional_call(srelu, {"threshold": threshold}, x)

    assert torch.autograd.gradcheck(call, (x, srelu.threshold))
    assert torch.autograd.gradgradcheck(call, (x, srelu.threshold))


@runs
def test_the_benchmark_measures_the_kernels(calls):
    x, residual = (draw((2, 3, 4, 4), torch.float32) for _ in range(2))
    for operators_of, inputs in zip(operators(3, with_triton=True), ((x,), (x, residual)), strict=True):
        use_triton_srelu(False)
        kinds = [operators_of[name] for name in operators_of if name.startswith("SReLU")]
        expected, found = (forward_and_backward(kind, *(t.clone() for t in inputs))() for kind in kinds)
        compare(found, expected)
    assert calls == ["forward", "backward"] * 2
