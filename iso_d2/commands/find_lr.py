"""Find a learning rate by a range test: some steps of a training at rising rates, from its start.

DIR gets range_test.png and range_test.csv with the loss of each step. The suggestion for SOLVER.BASE_LR is a
tenth of the rate at which the smoothed loss is smallest. Nothing is written to OUTPUT_DIR. One process does
it, at the config's SOLVER.IMS_PER_BATCH.

iso-d2 find-lr --config-file FILE --output DIR [--lowest RATE] [--highest RATE] [--steps N] \
    [--opts KEY VALUE ...]
"""

import argparse
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..engine.range_test import range_test, smoothed, suggested_rate, write_range_test
from ..engine.setup import load_config
from . import add_opts, fail


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="config of the training")
    add("--output", required=True, type=Path, metavar="DIR", help="folder of the results")
    add("--lowest", type=float, default=1e-5, metavar="RATE", help="of the first step (1e-5)")
    add("--highest", type=float, default=10.0, metavar="RATE", help="of the last step (10)")
    add("--steps", type=int, default=100, metavar="N", help="how many, in equal ratios (100)")
    add_opts(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="iso_d2")
    try:
        cfg = load_config(args.config_file, args.opts)
        args.output.mkdir(parents=True, exist_ok=True)
        rates, losses = range_test(cfg, args.lowest, args.highest, args.steps)
    except (AssertionError, KeyError, OSError, ValueError) as error:
        fail(error)
    write_range_test(rates, losses, args.output)
    smooth = smoothed(losses)
    if smooth[0] == min(smooth):
        print("The loss has not fallen at any rate, so this is no suggestion: begin at a lower --lowest")
    elif smooth[-1] == min(smooth):
        print("The loss still falls at the last rate, so a higher one may do: end at a higher --highest")
    print(
        f"SOLVER.BASE_LR {suggested_rate(rates, losses):.2g} (suggestion; {len(rates)} steps up to a rate of "
        f"{rates[-1]:.2g}; range_test.png and range_test.csv in {args.output})"
    )
