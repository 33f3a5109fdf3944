"""Write a trained model to a file that runs without this package: a classifier, a UNet or a detector.

iso-d2 export --config-file FILE --format onnx --output model.onnx --opts MODEL.WEIGHTS output/model_final.pth
"""

import argparse

from detectron2.utils.logger import setup_logger

from ..engine.export import export_model
from ..engine.exported import SUFFIXES
from ..engine.setup import load_config
from . import add_opts, fail


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the training")
    parser.add_argument("--format", required=True, choices=SUFFIXES)
    suffixes = ", ".join(SUFFIXES.values())
    parser.add_argument("--output", required=True, metavar="FILE", help=f"to write; ends in {suffixes}")
    add_opts(parser, "changes to the config, MODEL.WEIGHTS among them; last")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="iso_d2")
    setup_logger(name="fvcore")
    try:
        about, difference = export_model(load_config(args.config_file, args.opts), args.format, args.output)
    except (AssertionError, ImportError, KeyError, OSError, ValueError) as error:
        fail(error)
    for name, shape in {about["input"]["name"]: about["input"]["shape"], **about["outputs"]}.items():
        print(f"{name:13} {' x '.join(map(str, shape))}")
    if difference is None:
        print(f"{args.output}: not compared with the network, which finds nothing in noise")
    else:
        print(f"{args.output}: differs from the network by at most {difference:.1e} on an image of noise")
