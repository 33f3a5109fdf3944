"""Download, verify and unpack CIFAR-10 or CIFAR-100, some 170 MB each, for cifar10_* and cifar100_*.

Interrupted, it continues when it is called again. Example:

    iso-d2 data cifar cifar10
"""

import argparse
import sys

from detectron2.utils.logger import setup_logger

from ..data.catalog import dataset_root
from ..data.cifar.archives import SETS, prepare_cifar
from . import as_typed


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(SETS))
    parser.add_argument("--version", choices=["binary", "python"], default="binary", help="(binary)")
    parser.add_argument(
        "--output",
        default=dataset_root(),
        metavar="ROOT",
        help="data set root ($DETECTRON2_DATASETS or datasets)",
    )
    parser.add_argument("--archive", metavar="FILE", help="unpack this archive and download nothing")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="iso_d2")
    try:
        folder = prepare_cifar(args.name, args.version, args.output, args.archive)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted. To continue: {as_typed(argv)}")
    print(folder)
