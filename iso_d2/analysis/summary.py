"""All measurements of a model in one dict, and that dict as tables of text."""

import copy

from tabulate import tabulate

from .jacobian import measure_jacobian
from .layers import find_network, measure_convolutions, measure_scales, measure_thresholds
from .measured_signal import measure_signal, signal_faults, signal_table
from .network import calibrate_batch_norm, measure_depth, network_input


def analyze(model, batch, calibrate=False, grid=0, jacobian_images=1):
    """Measure the isometry of the network between image and heads, layer by layer and as a whole.

    A copy of the network is measured in evaluation mode: layers and signal in the model's own dtype, depth
    and Jacobian in float64. Normalizations count as constants in gradient and Jacobian.

    Args:
        model (nn.Module): a meta-architecture of Detectron2 or of iso_d2, or a bare network.
        batch (list[dict] or Tensor): what the model takes, images of one size: dicts with ``image``, (C, H,
            W), 0 to 255, ``height`` and ``width``; for a bare network (N, C, H, W).
        calibrate (bool): each batch normalization takes the statistics of these images, as an untrained one
            has none yet.
        grid (int): pixels an axis of the circular grid of the singular values, see
            :func:`~iso_d2.analysis.layers.measure_convolution`.
        jacobian_images (int): the Jacobian is taken at so many of the images, the first ones.

    Returns:
        dict: ``network``, its dotted name in the model; ``input``, the shape of the network's input;
        ``calibrated_norms``, how many normalizations took the images' statistics; ``layers``, ``thresholds``
        and ``scales`` as from :mod:`iso_d2.analysis.layers`; ``signal`` as from :func:`measure_signal`;
        ``depth`` as from :func:`measure_depth`; ``jacobian``, for each of its images as from
        :func:`measure_jacobian`.

    Raises:
        ValueError: a model without convolutions; images smaller than the network's stride; jacobian_images
            below 0; with `calibrate`, images that are too small or too few for a normalization.
    """
    if jacobian_images < 0:
        raise ValueError(f"the Jacobian is taken at 0 or more images, got {jacobian_images}")
    name, network = find_network(model)
    inputs = network_input(model, network, batch)
    network = copy.deepcopy(network).eval()
    result = {
        "network": name,
        "input": list(inputs.shape),
        "calibrated_norms": calibrate_batch_norm(network, inputs) if calibrate else 0,
        "layers": measure_convolutions(network, grid),
        "thresholds": measure_thresholds(network),
        "scales": measure_scales(network),
        "signal": measure_signal(network, inputs),
    }
    network, inputs = network.double(), inputs.double()
    result["depth"] = measure_depth(network, inputs)
    result["jacobian"] = [measure_jacobian(network, image[None]) for image in inputs[:jacobian_images]]
    return result


def describe(result):
    """What :func:`analyze` gives, but for the Jacobian, as tables and remarks: str."""
    remarks = [f"The network is {fault}" for fault in signal_faults(result["signal"])]
    if number := result["calibrated_norms"]:
        remarks.append(f"{number} batch normalizations have the statistics of these images, as constants")
    tables = [layer_table(result["layers"]), depth_table(result), signal_table(result["signal"])]
    return "\n\n".join([*tables, *(["\n".join(remarks)] if remarks else [])])


def layer_table(layers):
    """What :func:`measure_convolutions` gives, a row for each convolution: str."""
    measures = "sigma_min", "sigma_median", "sigma_max", "isometry_error", "gram_paper", "gram_exact"
    rows = [
        [
            name + ("*" if layer["centred"] else ""),
            *("x".join(map(str, layer[key])) for key in ("shape", "stride", "grid")),
            *(layer[key] for key in measures),
        ]
        for name, layer in layers.items()
    ]
    header = ["convolution", "weight", "stride", "grid", "min", "median", "max", "error", "paper", "exact"]
    table = tabulate(rows, header, floatfmt=".3g")
    if any(layer["centred"] for layer in layers.values()):
        table += (
            "\n* Centred (MODEL.ISONET.CENTRED): a constant image gives 0. So the smallest singular value is "
            "0 and the error at least 1, by design, unless the layer gives fewer values than it reads."
        )
    return table


def depth_table(result):
    """Signal, gradient, thresholds and scale of each block; nothing where a block has none: str."""
    rows = []
    for name, point in result["depth"].items():
        inside = [b for n, b in result["thresholds"].items() if n.startswith(name + ".")]
        scales = [s for n, s in result["scales"].items() if n.startswith(name + ".")]
        thresholds = [None] * 3
        if inside:
            low, mean, high = zip(*(b.values() for b in inside), strict=True)
            thresholds = [min(low), sum(mean) / len(mean), max(high)]
        rows.append([name, *point.values(), *thresholds, *(scales[:1] or [None])])
    header = ["output of", "signal rms", "signal norm", "gradient norm", "b min", "b mean", "b max", "scale"]
    return tabulate(rows, header, floatfmt=".3g")


def jacobian_table(results):
    """Jacobians of models, what :func:`analyze` gives by their names: share of non-zero singular values, and
    quantiles of these: str."""
    rows = [
        [
            *(label, i, start, f"{found['rows']}x{found['columns']}", found["method"]),
            *(found[key] for key in ("share", "max", "q95", "median", "q05")),
        ]
        for label, result in results.items()
        for i, starts in enumerate(result["jacobian"])
        for start, found in starts.items()
    ]
    header = ["Jacobian of", "image", "from", "size", "method", "non-zero", "max", "95 %", "median", "5 %"]
    return tabulate(rows, header, floatfmt=".3g")
