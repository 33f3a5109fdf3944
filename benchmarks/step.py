"""A training step of R-ISONet against ResNets with batch norm, frozen batch norm and group norm."""

import torch

from iso_d2.engine.choices import PAPER_COEFF
from iso_d2.isometry import orthogonality_losses

from .networks import (
    detection_batch,
    isonet,
    load_model,
    model_penalty,
    networks,
    norms,
    penalised_convs,
    resnet,
    resnet_depth,
    training_step,
)
from .report import Table, judge
from .timing import compare

ISO_DETECTOR, RESNET_DETECTOR = "risonet50_frcnn_fpn.yaml", "resnet50_frcnn_fpn.yaml"
# Of a detector's training step on a GPU
PENALTY_SHARE = 0.03


def measure_step(options, seconds):
    """The part "step": list[Table]."""
    tables = [_forward_and_backward(options, seconds * 0.4), _with_optimizer(options, seconds * 0.2)]
    if not options.cifar:
        tables.append(measure_detectors(options, seconds * 0.4))
    return tables


def targets(options):
    """dict[str, float]: the ResNet -> how much of its time a step of R-ISONet-50 may take."""
    if options.device == "cpu":
        return {"ResNet-50 BN": 1.0}
    as_meant = options.dtype == "bfloat16" and options.channels_last
    return {"ResNet-50 BN": 0.85, "ResNet-50 FrozenBN": 1.0} if as_meant else {}


def _forward_and_backward(options, seconds):
    images = options.images()
    cases = {name: training_step(net, options, images) for name, net in networks(options).items()}
    measured = compare(cases, options.repeats, seconds)
    rows = measured.rows(next(iter(cases)), limits=targets(options), images=options.batch)
    return Table(f"Training step (forward, backward), {options.describe(images.shape)}", rows)


def _with_optimizer(options, seconds):
    images, iso, norm = options.images(), isonet(options), resnet(options, "BN")
    convs = penalised_convs(iso)

    def step(net, penalty=None):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
        return training_step(net, options, images, optimizer, penalty)

    ours = f"R-ISONet-{options.depth}, penalty, SGD"
    cases = {
        ours: step(iso, lambda: PAPER_COEFF * orthogonality_losses(convs).sum()),
        f"R-ISONet-{options.depth}, SGD": step(iso),
        f"ResNet-{options.depth} BN, SGD": step(norm),
    }
    rows = compare(cases, options.repeats, seconds).rows(ours)
    return Table(f"Training step (forward, backward, SGD), {options.describe(images.shape)}", rows)


def measure_detectors(options, seconds, opts=()):
    """Table of steps of Faster R-CNN on an FPN, no optimizer; `opts` are KEY VALUE pairs of all configs."""
    ours = f"R-ISONet-{options.depth} FPN"
    every = f"{ours}, penalty at every step"
    opts = ["MODEL.ISONET.DEPTH", options.depth, *resnet_depth(options), *opts]
    iso, cfg = load_model(ISO_DETECTOR, options, opts)
    batch = detection_batch(options, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    penalty = model_penalty(iso, cfg)
    cases = {
        ours: training_step(iso, options, batch),
        every: training_step(iso, options, batch, penalty=lambda: penalty()[0]),
    }
    for norm in norms(options):
        model, _ = load_model(RESNET_DETECTOR, options, [*opts, "MODEL.RESNETS.NORM", norm])
        cases[f"ResNet-{options.depth} FPN {norm}"] = training_step(model, options, batch)
    measured = compare(cases, options.repeats, seconds)
    period = cfg.ISO.ORTHO.PERIOD
    if period > 1:
        measured = measured.with_derived(
            f"{ours}, penalty every {period}th step, as configured (computed)",
            lambda row: row[ours] + (row[every] - row[ours]) / period,
        )
    rows = measured.rows(ours)
    (with_penalty,) = (row for row in rows if row["network"] == every)
    added = measured.with_derived("penalty", lambda row: row[every] - row[ours])
    share = with_penalty["penalty's share"] = added.ratio("penalty", every)
    if options.device == "cuda" and options.has_targets:
        with_penalty["target"] = judge(share, at_most=PENALTY_SHARE, percent=True)
    shape = (options.detector_batch, 3, *options.detector_size)
    return Table(f"Faster R-CNN FPN, forward and backward, {options.describe(shape)}", rows)
