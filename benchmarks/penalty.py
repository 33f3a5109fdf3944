"""The orthogonality penalty against the paper's own form, over all convolutions of R-ISONet."""

from collections import defaultdict
from functools import partial

import torch
from torch.nn import functional as F

from iso_d2.isometry import orthogonality_losses

from .networks import isonet, penalised_convs, training_step
from .options import tf32
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

    with W, (C_out, C_in, k, k), transposed first where C_in < C_out, so that the smaller Gram is formed. The
    stride divides k - 1. Source: report, eq. (4) to (6).
    """
    if weight.shape[1] < weight.shape[0]:
        weight = weight.transpose(0, 1)
    padding = weight.shape[-1] - 1
    gram = F.conv2d(weight, weight, stride=stride, padding=padding)
    delta = torch.zeros_like(gram)
    delta[:, :, padding // stride, padding // stride].fill_diagonal_(1)
    return 0.5 * (gram - delta).square().sum()


def paper_losses(convs):
    """`paper_loss` of each convolution: (len(convs),)."""
    return torch.stack([paper_loss(conv.weight, conv.stride[0]) for conv in convs])


def values_and_gradients(convs, losses):
    """The penalty of each convolution by `losses`, convs -> (L,), then the gradient in each weight: list."""
    values = losses(convs)
    return [*values.detach(), *torch.autograd.grad(values.sum(), [conv.weight for conv in convs])]


def largest_difference(convs):
    """Largest difference of value or gradient of a layer from the paper's form, relative to the latter.

    Only where the formulas are the same: everywhere in mode "paper", at stride 1 in mode "exact". A
    RuntimeError says that it is above TOLERANCE.
    """
    differences = []
    for mode, alike in (("paper", convs), ("exact", [conv for conv in convs if conv.stride == (1, 1)])):
        ours = values_and_gradients(alike, partial(orthogonality_losses, mode=mode))
        wanted = values_and_gradients(alike, paper_losses)
        differences += [((a - b).norm() / b.norm()).item() for a, b in zip(ours, wanted, strict=True)]
    worst = max(differences)
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the penalty and the paper's form differ by {worst:.1e}, more than {TOLERANCE}")
    return worst


def measure_penalty(options, seconds):
    """The part "penalty": list[Table]. Two forms that give other values or gradients are a RuntimeError."""
    net, images = isonet(options), options.images()
    convs = penalised_convs(net)
    kinds = defaultdict(list)
    for conv in convs:
        stride = "" if conv.stride == (1, 1) else f", stride {conv.stride[0]}"
        kinds["x".join(map(str, conv.weight.shape)) + stride].append(conv)
    with tf32(False):
        difference = largest_difference(convs)
    measured = _measured(kinds, convs, options, seconds, training_step(net, options, images))
    title = (
        f"Penalty of the {len(convs)} convolutions of R-ISONet-{options.depth}, forward and backward; values "
        f"and gradients agree to {difference:.0e} in float32; a step (no optimizer) of "
        f"{options.describe(images.shape)} takes {measured.milliseconds(STEP)['median']:.0f} ms"
    )
    whole = [name for name in measured.times if isinstance(name, str) and name not in (PAPER, STEP)]
    rows = []
    for name in (PAPER, *whole):
        row = {"penalty": name, "ms": measured.milliseconds(name), "n": measured.n}
        row |= {"precision": options.penalty_precision}
        row["share of the step"] = measured.ratio(name, STEP)["median"]
        if name != PAPER:
            row["times as fast"] = measured.ratio(PAPER, name)
        if name in (OURS, EXACT) and options.has_targets:
            row["target"] = judge(row["times as fast"], at_least=TARGETS[options.device])
        rows.append(row)
    by_shape = [
        {
            "weight": kind,
            "layers": len(alike),
            "paper's form, ms": measured.milliseconds((PAPER, kind)),
            "iso_d2, ms": measured.milliseconds((OURS, kind)),
            "times as fast": measured.ratio((PAPER, kind), (OURS, kind)),
            "n": measured.n,
            "precision": options.penalty_precision,
        }
        for kind, alike in kinds.items()
    ]
    return [
        Table(title, rows),
        Table("The same by shape, mode paper, the layers of a shape together", by_shape),
    ]


def _measured(kinds, convs, options, seconds, step):
    """Comparison: the step, both forms by shape, under (form, shape), and those of the whole net by name.

    The paper's form of the whole net is the sum over its layers, the penalty at every n-th step a fraction.
    """
    generator = torch.Generator(options.device).manual_seed(options.seed)
    cases = {STEP: step}
    ours = partial(orthogonality_losses, precision=options.penalty_precision)
    for kind, alike in kinds.items():
        cases[PAPER, kind] = partial(values_and_gradients, alike, paper_losses)
        cases[OURS, kind] = partial(values_and_gradients, alike, ours)
    whole = {OURS: {}, EXACT: {"mode": "exact"}}
    for fraction in FRACTIONS:
        drawn = {"fraction": fraction, "generator": generator}
        whole[f"{OURS}, fraction {fraction} of the frequencies"] = drawn
    for name, arguments in whole.items():
        cases[name] = partial(values_and_gradients, convs, partial(ours, **arguments))
    measured = compare(cases, options.repeats, seconds)
    measured = measured.with_derived(PAPER, lambda row: sum(row[PAPER, kind] for kind in kinds))
    for period in PERIODS:
        name = f"{OURS}, every {period} steps (computed)"
        measured = measured.with_derived(name, lambda row, n=period: row[OURS] / n)
    return measured
