"""Train a segmentation network on each fold of the patients, and measure every patient out of fold.

iso-d2 folds --config-file FILE [--folds 5] [--fold I ...] [--num-gpus N] [KEY VALUE ...]

The patients of DATASETS.TRAIN are divided. OUTPUT_DIR gets fold_0, fold_1, ..., and folds.json and
patients.csv with the volume Dice of all patients. The mean of the folds' networks is measured on
DATASETS.TEST, if that has other patients. The same command goes on after an interruption.
"""

import argparse

from detectron2.utils import comm

from ..engine.cross_validation import CrossValidation
from . import fail
from .train import start


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="as of a training")
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="how many (5)")
    parser.add_argument(
        "--fold",
        type=int,
        action="append",
        default=[],
        metavar="I",
        help="only this one, from 0; may be given several times. All, if it is not given",
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes of each training")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        cross_validation = CrossValidation(args.config_file, args.opts, args.folds, args.fold)
    except (AssertionError, KeyError, OSError, ValueError) as error:
        fail(error)
    start(run, cross_validation, args.num_gpus)


def run(cross_validation):
    """Run one process of a CrossValidation."""
    summary = cross_validation.run()
    if summary:
        print(f"{describe(summary)} out of fold, in {cross_validation.cfg.OUTPUT_DIR}/patients.csv")
        if "ensemble" in summary:
            found = summary["ensemble"]
            print(f"{describe(found)} of {', '.join(found['data'])}, by the folds' ensemble")
    elif comm.is_main_process():
        print(
            "Other folds are not done with these settings: folds.json and patients.csv are left as they "
            "were. Without --fold the command does what is left"
        )
    return summary


def describe(measures):
    """str: the volume Dice of some patients, as in ``folds.json``."""
    dice = measures["volume_dice"]
    low, high = dice["interval"]
    return (
        f"volume Dice: mean {dice['mean']:.1f} % ({100 * dice['confidence']:.0f} % bootstrap interval "
        f"{low:.1f} to {high:.1f}), median {dice['median']:.1f} %, {measures['n']} patients"
    )
