"""Pictures of what the other files here measure, of several models beside each other.

Each function takes what was measured in a dict by the models' names, and the path of the PNG file to write.
"""

from itertools import accumulate

from matplotlib.figure import Figure

# Values below are drawn at it, so that zeros have a place on a logarithmic axis
FLOOR = 1e-3
# As many names of layers and blocks as can be read under an axis
LABELS = 60


def plot_layers(models, path):
    """The range of singular values of every convolution (``layers`` of `analyze`), a panel for each model."""
    figure = Figure(figsize=(12, 1 + 3.2 * len(models)), layout="constrained")
    panels = figure.subplots(len(models), 1, squeeze=False, sharey=True)[:, 0]
    for axes, (label, layers) in zip(panels, models.items(), strict=True):
        low, median, high = (
            [max(layer[f"sigma_{which}"], FLOOR) for layer in layers.values()]
            for which in ("min", "median", "max")
        )
        axes.vlines(range(len(layers)), low, high, "tab:blue", linewidth=4, label="smallest to largest")
        axes.plot(median, "o", color="tab:red", markersize=4, label="median")
        axes.set_title(label)
        axes.set_ylabel(f"singular value (at least {FLOOR:g})")
        _logarithmic(axes, list(layers))
    panels[0].legend(loc="lower left", fontsize=8)
    figure.savefig(str(path), dpi=110)


def plot_depth(models, path):
    """Signal and gradient by depth (``depth`` of `analyze`), all models in each of three panels."""
    figure = Figure(figsize=(12, 11), layout="constrained")
    panels = figure.subplots(3, 1)
    titles = {
        "signal_rms": "signal: root mean square, by that at the first point",
        "signal_norm": "signal: norm, by that at the first point",
        "gradient_norm": "gradient: norm, back from a random direction of norm 1",
    }
    longest = max(models.values(), key=len)
    for axes, (quantity, title) in zip(panels, titles.items(), strict=True):
        for label, points in models.items():
            values = [max(point[quantity], 1e-30) for point in points.values()]
            # The signal starts alike for all, the gradient ends alike.
            shift = len(longest) - len(points) if quantity == "gradient_norm" else 0
            axes.plot(range(shift, len(longest))[: len(values)], values, "o-", markersize=3, label=label)
        axes.set_title(title)
        _logarithmic(axes, list(longest))
    panels[0].legend(fontsize=8)
    figure.savefig(str(path), dpi=110)


def plot_jacobian(models, path):
    """Descending singular values of the Jacobians (``jacobian`` of `analyze`), a panel for each start."""
    starts = sorted({start for images in models.values() for image in images for start in image})
    figure = Figure(figsize=(6 * len(starts), 4.5), layout="constrained")
    panels = figure.subplots(1, len(starts), squeeze=False, sharey=True)[0]
    for axes, start in zip(panels, starts, strict=True):
        for number, (label, images) in enumerate(models.items()):
            for i, found in enumerate(image[start] for image in images if start in image):
                values = [max(value, FLOOR) for value in found["values"]]
                edges = [0.0, *accumulate(found["shares"])]
                label = label if i == 0 else None
                axes.stairs(values, edges, baseline=None, color=f"C{number}", alpha=0.7, label=label)
        _logarithmic(axes)
        axes.set_title("from the image" if start == "image" else "from the stem's output")
        axes.set_xlabel("share of the singular values")
    panels[0].set_ylabel(f"singular value (at least {FLOOR:g})")
    panels[-1].legend(fontsize=8)
    figure.savefig(str(path), dpi=110)


def _logarithmic(axes, names=()):
    """A logarithmic axis with a line at 1, and under the other one as many names as can be read."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    if names:
        step = -(-len(names) // LABELS)
        axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=6)
        axes.margins(x=0.01)
