"""A training step of R-ISONet against ResNets with batch norm, frozen batch norm and group norm."""

import torch

from ..isometry import orthogonality_losses
from .networks import (
    add_penalty,
    detection_batch,
    isonet,
    load_model,
    model_step,
    networks,
    norms,
    penalised_convs,
    resnet,
    training_step,
)
from .report import Table, judge
from .timing import compare

ISO_DETECTOR = "risonet50_frcnn_fpn.yaml"
# Of a detector's training step on a GPU
PENALTY_SHARE = 0.03
RESNET_DETECTOR = "resnet50_frcnn_fpn.yaml"


def measure_step(options, seconds):
    """The part "step": list[Table]."""
    tables = [_forward_and_backward(options, seconds * 0.4), _with_optimizer(options, seconds * 0.2)]
    if not options.cifar:
        tables.append(measure_detectors(options, seconds * 0.4))
    return tables


def targets(options):
    """dict[str, float]: norm of the ResNet -> how much of its time a step of R-ISONet may take.

    On a GPU they are for bfloat16 and channels_last.
    """
    if not options.has_targets:
        return {}
    if options.device == "cpu":
        return {"BN": 1.0}
    as_meant = options.dtype == "bfloat16" and options.channels_last
    return {"BN": 0.85, "FrozenBN": 1.0} if as_meant else {}


def _forward_and_backward(options, seconds):
    images, nets = options.images(), networks(options)
    cases = {name: training_step(net, images, options) for name, net in nets.items()}
    measured = compare(cases, options.repeats, seconds, options.device)
    ours = next(iter(cases))
    wanted = {f"ResNet-{options.depth} {norm}": limit for norm, limit in targets(options).items()}
    rows = ratio_rows(measured, ours, wanted)
    for row in rows:
        row["images / s"] = 1000 * options.batch / row["ms"]["median"]
    return Table(f"Training step (forward, backward), {_input(images, options)}", rows)


def ratio_rows(measured, ours, wanted):
    """Rows of times, each with that of ours over it.

    Args:
        measured (Comparison): of all alternatives.
        ours (str): the one that the others are compared with.
        wanted (dict[str, float]): other -> the largest ratio wanted.

    Returns:
        list[dict]
    """
    rows = []
    for name in measured.times:
        row = {"network": name, "ms": measured.milliseconds(name), "n": measured.n}
        if name != ours:
            row["ours over it"] = measured.ratio(ours, name)
            if name in wanted:
                row["target"] = judge(row["ours over it"], at_most=wanted[name])
        rows.append(row)
    return rows


def _with_optimizer(options, seconds):
    images = options.images()
    iso, norm = isonet(options), resnet(options, "BN")
    convs = penalised_convs(iso)
    optimizers = [
        torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4) for net in (iso, norm)
    ]

    def penalty():
        return 1e-4 * orthogonality_losses(convs).sum()

    ours = f"R-ISONet-{options.depth}, penalty, SGD"
    cases = {
        ours: training_step(iso, images, options, optimizers[0], penalty),
        f"R-ISONet-{options.depth}, SGD": training_step(iso, images, options, optimizers[0]),
        f"ResNet-{options.depth} BN, SGD": training_step(norm, images, options, optimizers[1]),
    }
    measured = compare(cases, options.repeats, seconds, options.device)
    title = f"Training step (forward, backward, SGD), {_input(images, options)}"
    return Table(title, ratio_rows(measured, ours, {}))


def measure_detectors(options, seconds, opts=()):
    """Whole training steps of Faster R-CNN on an FPN, without the optimizer.

    Args:
        options (Options): detector_batch, detector_size and depth are read.
        seconds (float): time for it.
        opts (sequence): KEY VALUE pairs for all configs.

    Returns:
        Table
    """
    ours = f"R-ISONet-{options.depth} FPN"
    opts = ["MODEL.ISONET.DEPTH", options.depth, "MODEL.RESNETS.DEPTH", options.depth, *opts]
    if options.depth in (18, 34):
        opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    iso, cfg = load_model(ISO_DETECTOR, options, opts)
    batch = detection_batch(options, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    cases = {ours: model_step(iso, batch, options)}
    plain_step = cases[ours]

    def step_with_penalty():
        with add_penalty(iso, cfg):
            plain_step()

    every = f"{ours}, penalty at every step"
    cases[every] = step_with_penalty
    for norm in norms(options):
        model, _ = load_model(RESNET_DETECTOR, options, [*opts, "MODEL.RESNETS.NORM", norm])
        cases[f"ResNet-{options.depth} FPN {norm}"] = model_step(model, batch, options)
    measured = compare(cases, options.repeats, seconds, options.device)
    period = cfg.ISO.ORTHO.PERIOD
    if period > 1:
        measured = measured.with_derived(
            f"{ours}, penalty every {period}th step, as configured (computed)",
            lambda row: row[ours] + (row[every] - row[ours]) / period,
        )
    rows = ratio_rows(measured, ours, {})
    measured = measured.with_derived("penalty", lambda row: row[every] - row[ours])
    for row in rows:
        if row["network"] == every:
            row["penalty's share"] = measured.ratio("penalty", every)
            if options.device == "cuda" and options.has_targets:
                row["target"] = judge(row["penalty's share"], at_most=PENALTY_SHARE, percent=True)
    size = "x".join(map(str, options.detector_size))
    title = f"Faster R-CNN FPN, forward and backward, {options.detector_batch}x3x{size} {options.dtype}"
    return Table(title, rows)


def _input(images, options):
    layout = ", channels last" if options.channels_last else ""
    return "x".join(map(str, images.shape)) + f" {options.dtype}{layout}"
