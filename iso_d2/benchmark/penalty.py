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
    unstrided = [conv for conv in convs if conv.stride == (1, 1)]
    for mode, same in (("paper", convs), ("exact", unstrided)):
        if not same:
            continue
        weights = [conv.weight for conv in same]
        values = orthogonality_losses(same, mode)
        gradients = torch.autograd.grad(values.sum(), weights)
        for conv, value, gradient in zip(same, values, gradients, strict=True):
            expected = paper_loss(conv.weight, conv.stride[0])
            (wanted,) = torch.autograd.grad(expected, [conv.weight])
            worst = max(worst, _relative(value, expected), _relative(gradient, wanted))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the penalty and the paper's form differ by {worst:.1e}, more than {TOLERANCE}")
    return worst


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
    """The part "penalty": list[Table]."""
    net, images = isonet(options), options.images()
    convs = penalised_convs(net)
    at_least = TARGETS[options.device] if options.has_targets else None
    with tf32(False):
        difference = largest_difference(convs)
        tables = [_whole_net(options, seconds * 0.55, net, images, convs, difference, at_least)]
        tables.append(_by_shape(options, seconds * 0.3, convs))
    if options.device == "cuda":
        with tf32(True):
            paper, ours = "paper's form, TF32", "iso_d2, TF32"
            cases = {paper: by_paper(convs), ours: by_iso_d2(convs)}
            measured = compare(cases, options.repeats, seconds * 0.15, options.device)
        tables.append(
            Table("Penalty with TF32 in both forms", _speed_rows(measured, paper, at_least, (ours,)))
        )
    return tables


def _whole_net(options, seconds, net, images, convs, difference, at_least):
    paper, ours, step = "paper's form (conv2d Gram, autograd)", "iso_d2, mode paper", "training step"
    exact = "iso_d2, mode exact"
    cases = {paper: by_paper(convs), ours: by_iso_d2(convs), exact: by_iso_d2(convs, "exact")}
    generator = torch.Generator().manual_seed(options.seed)
    for fraction in FRACTIONS:
        name = f"iso_d2, mode paper, fraction {fraction} of the frequencies"
        cases[name] = by_iso_d2(convs, fraction=fraction, generator=generator)
    cases[step] = training_step(net, images, options)
    measured = compare(cases, options.repeats, seconds, options.device)
    for period in PERIODS:
        measured = measured.with_derived(
            f"iso_d2, mode paper, every {period} steps (computed)", lambda row, n=period: row[ours] / n
        )
    rows = _speed_rows(measured, paper, at_least, targets=(ours, exact))
    for row in rows:
        row["share of the step"] = measured.ratio(row["penalty"], step)["median"]
    size = "x".join(map(str, images.shape))
    title = (
        f"Penalty of the {len(convs)} convolutions of R-ISONet-{options.depth}, forward and backward, "
        "float32; "
        f"values and gradients agree to {difference:.0e}; a step (no optimizer) of {size} takes "
        f"{measured.milliseconds(step)['median']:.0f} ms"
    )
    return Table(title, [row for row in rows if row["penalty"] != step])


def _speed_rows(measured, baseline, at_least, targets=()):
    """Rows of times; those named in `targets` are to be `at_least` times as fast."""
    rows = []
    for name in measured.times:
        row = {"penalty": name, "ms": measured.milliseconds(name), "n": measured.n}
        if name != baseline:
            row["times as fast"] = measured.ratio(baseline, name)
            if at_least is not None and name in targets:
                row["target"] = judge(row["times as fast"], at_least=at_least)
        rows.append(row)
    return rows


def _by_shape(options, seconds, convs):
    alike = defaultdict(list)
    for conv in convs:
        alike[tuple(conv.weight.shape), conv.stride].append(conv)
    rows = []
    for (shape, stride), members in alike.items():
        cases = {"paper": by_paper(members), "ours": by_iso_d2(members)}
        measured = compare(cases, options.repeats, seconds / len(alike), options.device)
        rows.append(
            {
                "weight": "x".join(map(str, shape)) + ("" if stride == (1, 1) else f", stride {stride[0]}"),
                "layers": len(members),
                "paper's form, ms": measured.milliseconds("paper"),
                "iso_d2, ms": measured.milliseconds("ours"),
                "times as fast": measured.ratio("paper", "ours"),
                "n": measured.n,
            }
        )
    return Table("The same by shape, mode paper, all layers of a shape together", rows)


def width_convs(options, widths):
    """dict[int, list[nn.Conv2d]]: one 3x3 convolution of each width, with random weights."""
    torch.manual_seed(options.seed)
    return {width: [nn.Conv2d(width, width, 3, bias=False).to(options.device)] for width in widths}
