"""The orthogonality penalty against the paper's own form, over all convolutions of R-ISONet."""

import contextlib
from collections import defaultdict

import torch
from torch import nn
from torch.nn import functional as F

from ..isometry import orthogonality_losses
from .networks import isonet, penalised_convs, training_step
from .report import Table, judge
from .timing import compare

PAPER, OURS, EXACT = "paper's form (conv2d Gram, autograd)", "iso_d2, mode paper", "iso_d2, mode exact"
STEP = "training step"
FRACTIONS = (0.5, 0.25)
PERIODS = (2, 5, 10)
# Relative difference of the two forms' values and gradients in float32, above which something is wrong
TOLERANCE = 1e-4
# How many times as fast as the paper's form the exact penalty of the whole net is to be
TARGETS = {"cpu": 3.0, "cuda": 5.0}


def paper_loss(weight, stride=1):
    """The penalty of one convolution as the paper has it, differentiated by autograd.

        G = conv2d(W, W, padding=k - 1, stride=s),    L = 1/2 ||G - delta||_F^2

    with W transposed first where C_in < C_out, so that the smaller Gram is formed.

    Args:
        weight (Tensor): (C_out, C_in, k, k) with (k - 1) divisible by the stride.
        stride (int): of the layer.

    Returns:
        Tensor: without dimensions.

    Source: report, eq. (4) to (6).
    """
    if weight.shape[1] < weight.shape[0]:
        weight = weight.transpose(0, 1)
    padding = weight.shape[-1] - 1
    gram = F.conv2d(weight, weight, stride=stride, padding=padding)
    delta = torch.zeros_like(gram)
    delta[:, :, padding // stride, padding // stride].fill_diagonal_(1)
    return 0.5 * (gram - delta).square().sum()


def by_paper(convs):
    """Function: value and gradients of `paper_loss`, summed over convolutions."""
    weights = [conv.weight for conv in convs]

    def run():
        total = sum(paper_loss(conv.weight, conv.stride[0]) for conv in convs)
        return total.detach(), torch.autograd.grad(total, weights)

    return run


def by_iso_d2(convs, mode="paper", **arguments):
    """Function: value and gradients of `orthogonality_losses`, summed over convolutions."""
    weights = [conv.weight for conv in convs]

    def run():
        total = orthogonality_losses(convs, mode, **arguments).sum()
        return total.detach(), torch.autograd.grad(total, weights)

    return run


def largest_difference(convs):
    """How far both forms are apart where their formulas are the same: everywhere in mode "paper", at stride 1
    in mode "exact".

    Args:
        convs (list[nn.Conv2d]): without groups, of square kernels with (k - 1) divisible by the stride.

    Returns:
        float: the largest difference of value or gradient of a layer, relative to that of the paper's form.

    Raises:
        RuntimeError: it is above TOLERANCE.
    """
    worst = 0.0
    unstrided = [conv.stride == (1, 1) for conv in convs]
    paper, ours = _values_and_gradients(convs, "paper"), _values_and_gradients(convs, "exact")
    for conv, same, *pairs in zip(convs, unstrided, paper, ours, strict=True):
        expected = paper_loss(conv.weight, conv.stride[0])
        wanted = expected, *torch.autograd.grad(expected, [conv.weight])
        for found in pairs if same else pairs[:1]:
            worst = max(worst, *(_relative(a, b) for a, b in zip(found, wanted, strict=True)))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the penalty and the paper's form differ by {worst:.1e}, more than {TOLERANCE}")
    return worst


def _values_and_gradients(convs, mode):
    """list[tuple[Tensor, Tensor]], by layer."""
    values = orthogonality_losses(convs, mode)
    gradients = torch.autograd.grad(values.sum(), [conv.weight for conv in convs])
    return list(zip(values, gradients, strict=True))


def _relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@contextlib.contextmanager
def tf32(enabled):
    """Whether a GPU may round the operands of float32 convolutions and matrix products to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def measure_penalty(options, seconds):
    """The part "penalty": list[Table].

    Raises:
        RuntimeError: the two forms give other values or gradients.
    """
    net, images = isonet(options), options.images()
    convs = penalised_convs(net)
    alike = defaultdict(list)
    for conv in convs:
        alike[tuple(conv.weight.shape), conv.stride].append(conv)
    on_gpu = options.device == "cuda"
    with tf32(False):
        difference = largest_difference(convs)
        cases = _forms(alike, convs, options) | {STEP: training_step(net, images, options)}
        share = seconds * (0.8 if on_gpu else 1)
        measured = _with_totals(compare(cases, options.repeats, share, options.device), alike)
    title = (
        f"Penalty of the {len(convs)} convolutions of R-ISONet-{options.depth}, forward and backward, "
        f"float32; values and gradients agree to {difference:.0e}; a step (no optimizer) of "
        f"{'x'.join(map(str, images.shape))} takes {measured.milliseconds(STEP)['median']:.0f} ms"
    )
    tables = [
        Table(title, _whole_net(measured, options)),
        Table("The same by shape, mode paper, the layers of a shape together", _by_shape(measured, alike)),
    ]
    if on_gpu:
        with tf32(True):
            measured = compare(_forms(alike, convs, options), options.repeats, seconds * 0.2, options.device)
        rows = _whole_net(_with_totals(measured, alike), options)
        tables.append(Table("The same with operands rounded to TF32, in both forms", rows))
    return tables


def _forms(alike, convs, options):
    """dict: both forms by shape, under (form, shape), and iso_d2's of the whole net with its options."""
    cases = {}
    for kind, members in alike.items():
        cases |= {(PAPER, kind): by_paper(members), (OURS, kind): by_iso_d2(members)}
    cases |= {OURS: by_iso_d2(convs), EXACT: by_iso_d2(convs, "exact")}
    generator = torch.Generator().manual_seed(options.seed)
    for fraction in FRACTIONS:
        name = f"{OURS}, fraction {fraction} of the frequencies"
        cases[name] = by_iso_d2(convs, fraction=fraction, generator=generator)
    return cases


def _with_totals(measured, alike):
    """With the paper's form of the whole net, the sum over its layers, and the penalty at every n-th step."""
    measured = measured.with_derived(PAPER, lambda row: sum(row[PAPER, kind] for kind in alike))
    for period in PERIODS:
        name = f"{OURS}, every {period} steps (computed)"
        measured = measured.with_derived(name, lambda row, n=period: row[OURS] / n)
    return measured


def _whole_net(measured, options):
    names = [name for name in measured.times if isinstance(name, str) and name not in (PAPER, STEP)]
    rows = []
    for name in [PAPER, *names]:
        row = {"penalty": name, "ms": measured.milliseconds(name), "n": measured.n}
        if STEP in measured.times:
            row["share of the step"] = measured.ratio(name, STEP)["median"]
        if name != PAPER:
            row["times as fast"] = measured.ratio(PAPER, name)
        if name in (OURS, EXACT) and options.has_targets:
            row["target"] = judge(row["times as fast"], at_least=TARGETS[options.device])
        rows.append(row)
    return rows


def _by_shape(measured, alike):
    return [
        {
            "weight": "x".join(map(str, shape)) + ("" if stride == (1, 1) else f", stride {stride[0]}"),
            "layers": len(members),
            "paper's form, ms": measured.milliseconds((PAPER, (shape, stride))),
            "iso_d2, ms": measured.milliseconds((OURS, (shape, stride))),
            "times as fast": measured.ratio((PAPER, (shape, stride)), (OURS, (shape, stride))),
            "n": measured.n,
        }
        for (shape, stride), members in alike.items()
    ]


def width_convs(options, widths):
    """dict[int, list[nn.Conv2d]]: one 3x3 convolution of each width, with random weights."""
    torch.manual_seed(options.seed)
    return {width: [nn.Conv2d(width, width, 3, bias=False).to(options.device)] for width in widths}
