"""Write one HTML page about a training: curves, results, pictures, isometry by layer, how it was started.

It reads what lies in OUTPUT_DIR. If the training has logged no singular values (ISO.ANALYSIS.PERIOD), they
are measured: before, of a network as its training starts; after, of the last checkpoint.

iso-d2 report OUTPUT_DIR [--output FILE] [--no-isometry]
"""

import argparse
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..analysis import find_network
from ..analysis.layers import measure_convolution
from ..engine.analysis import load_default_images, load_model, model_input
from ..engine.setup import load_config
from ..isometry import find_convolutions
from ..reporting import write_report
from ..reporting.reading import layer_values, read_metrics


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="OUTPUT_DIR", help="of a training")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: OUTPUT_DIR/report.html")
    parser.add_argument("--no-isometry", action="store_true", help="measure no layers")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="iso_d2")
    try:
        logged = any("error" in layer["after"] for layer in layer_values(read_metrics(args.folder)).values())
        layers = {} if logged or args.no_isometry else measured(args.folder)
        path = write_report(args.folder, args.output, layers)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"The page of this run: {path.absolute()}")


def measured(folder):
    """Singular values of a run's layers before and after, as :func:`layer_values`; {} without a checkpoint.

    Before is a network as the training starts, after the last checkpoint; both on the CPU.
    """
    config, last = folder / "config.yaml", folder / "last_checkpoint"
    file = last.read_text(errors="replace").strip() if last.is_file() else "model_final.pth"
    weights = folder / file
    if not config.is_file() or not weights.is_file():
        return {}
    print("Measuring the layers before and after the training (--no-isometry leaves it out)", flush=True)
    layers = {}
    try:
        for when, opts in (("before", []), ("after", ["MODEL.WEIGHTS", str(weights)])):
            cfg = load_config(config, ["MODEL.DEVICE", "cpu", *opts])
            if when == "before" and Path(cfg.MODEL.WEIGHTS).absolute().parent == folder.absolute():
                cfg.MODEL.WEIGHTS = ""  # a later evaluation has left its config here
            images, _ = load_default_images(cfg, 8)
            name, network = find_network(load_model(cfg, model_input(cfg, images)))
            for layer, conv in find_convolutions(network).items():
                found = measure_convolution(conv)
                values = {what: found[f"sigma_{what}"] for what in ("min", "max")}
                values["error"] = found["isometry_error"]
                layers.setdefault(f"{name}.{layer}".strip("."), {})[when] = values
    # the run may be of a model or of data that are not here
    except Exception as error:
        print(f"The layers cannot be measured: {type(error).__name__}: {error}")
        return {}
    return layers
