"""Measure how far networks are from an isometry, layer by layer and as a whole, beside each other.

A MODEL is a config, CONFIG.yaml, as its training would start (MODEL.WEIGHTS of the config is loaded, if any);
CONFIG.yaml=CHECKPOINT; or a CHECKPOINT alone, whose config is the config.yaml beside it.

For every convolution between image and heads (of an FPN its bottom-up part): smallest, median and largest
singular value on a circular grid, max |sigma - 1|, 1/2 ||Gram - delta||^2 in the penalty's two modes, all of
the weight without its gain. SReLU thresholds, the share of clipped values, residual scales. By depth the
signal, and the norm of the gradient that comes back from a random direction. Singular values of the Jacobian
of the last block's output by the image and by the stem's output: all of them up to 1024, above that their
density by Lanczos' method. Normalizations count in signal, gradient and Jacobian, not in the convolutions.
Without a checkpoint, batch normalizations take their statistics from the images, and a stem that is to whiten
its images whitens these. DIR gets isometry.json and three pictures.

iso-d2 analyze MODEL [MODEL ...] --output DIR [--images PATH ...] [--opts KEY VALUE ...]
"""

import argparse
import datetime
import json
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..analysis import describe, jacobian_table
from ..analysis.plots import plot_depth, plot_jacobian, plot_layers
from ..data.lgg import named_by_split
from ..engine.analysis import analyze_config, load_default_images, load_images
from ..engine.setup import find_config, load_config
from ..files import write_atomically
from ..provenance import versions
from . import add_opts, as_typed, fail


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="CONFIG, CONFIG=CHECKPOINT or CHECKPOINT")
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the results")
    images = (
        "image files, folders, registered data sets, those of LGG in the split of the first model "
        "(the first model's test set, else generated images)"
    )
    add("--images", nargs="+", metavar="PATH", help=images)
    add("--num-images", type=int, default=8, metavar="N", help="how many images (8)")
    jacobian = "the Jacobian at the first N of them (2); 0: none"
    add("--jacobian-images", type=int, default=2, metavar="N", help=jacobian)
    size = "images become so many pixels a side (their own, at most 64)"
    add("--size", type=int, metavar="PIXELS", help=size)
    grid = "circular grid of each convolution, at least (the smallest without wrap-around: 5 for 3x3)"
    add("--grid", type=int, default=0, metavar="PIXELS", help=grid)
    add("--device", metavar="DEVICE", help="MODEL.DEVICE, e.g. cpu or cuda")
    add_opts(parser, "changes to the config of every model; last")
    return parser.parse_args(argv)


def read_model(model, opts, device):
    """A MODEL of the command line -> its label and its config."""
    config, _, checkpoint = model.partition("=")
    if not checkpoint and not Path(config).suffix:  # the name of a config that comes with iso_d2
        config = str(find_config(config))
    if not checkpoint and not config.endswith((".yaml", ".yml")):
        config, checkpoint = str(Path(config).parent / "config.yaml"), config
        if not Path(config).is_file():
            raise FileNotFoundError(
                f"{checkpoint} is no config (.yaml), and as a checkpoint it has no config.yaml beside it: "
                f"give CONFIG.yaml={checkpoint}"
            )
    opts = [*opts, *(["MODEL.DEVICE", device] if device else [])]
    cfg = load_config(config, [*opts, *(["MODEL.WEIGHTS", checkpoint] if checkpoint else [])])
    label = Path(config).stem
    if checkpoint:
        folder = "/".join(Path(checkpoint).absolute().parent.parts[-2:])
        label = f"{folder if label == 'config' else label}, {Path(checkpoint).stem}"
    return label, cfg


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="iso_d2")
    setup_logger(name="fvcore")
    try:
        configs = {}
        for model in args.models:
            label, cfg = read_model(model, args.opts, args.device)
            configs[model if label in configs else label] = cfg
        args.output.mkdir(parents=True, exist_ok=True)
        cfg = next(iter(configs.values()))
        if args.images:
            datasets = cfg.DATASETS
            source = named_by_split(args.images, datasets.LGG_SPLIT, datasets.LGG_FOLD, datasets.LGG_FOLDS)
            images = load_images(source, args.num_images, args.size)
        else:
            images, source = load_default_images(cfg, args.num_images, args.size)
        results = {}
        for label, cfg in configs.items():
            print(f"\n{label}: {len(images)} images of {len(images[0])} pixels a side", flush=True)
            results[label] = analyze_config(cfg, images, args.grid, args.jacobian_images)
            print(f"\n{describe(results[label])}")
    except (AssertionError, KeyError, OSError, ValueError) as error:
        fail(error)
    document = {
        "command": as_typed(argv),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "images": source,
        "num_images": len(images),
        "size": len(images[0]),
        "models": results,
    }
    write_atomically(args.output / "isometry.json", json.dumps(document, indent=1))
    plot_layers({k: r["layers"] for k, r in results.items()}, args.output / "isometry_layers.png")
    plot_depth({k: r["depth"] for k, r in results.items()}, args.output / "isometry_depth.png")
    if args.jacobian_images:
        plot_jacobian({k: r["jacobian"] for k, r in results.items()}, args.output / "isometry_jacobian.png")
        print(f"\n{jacobian_table(results)}")
    print(f"\nisometry.json and pictures in {args.output}")
