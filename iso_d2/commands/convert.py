"""Convert a checkpoint to one that MODEL.WEIGHTS takes, for classification and for any detector here.

SRC is a checkpoint of the ISONet authors' code (github.com/HaozhiQi/ISONet), or of this package's own
classification training. --to-authors converts in the other direction. Example:

    iso-d2 convert RISO50.pt risonet50.pth
"""

import argparse
import os
import sys

import torch

from ..modeling import official


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SRC", help="checkpoint to read")
    parser.add_argument("destination", metavar="DST", help="file to write")
    parser.add_argument("--to-authors", action="store_true", help="write the layout of the authors' code")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        checkpoint = official.read_checkpoint(args.source)
        state, variant = official.to_isonet(checkpoint)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    result = {
        "model": state,
        "__author__": f"iso_d2, from {os.path.basename(args.source)}",
        "matching_heuristics": True,
    }
    if args.to_authors:
        net = official.to_authors(result)
        result = {"net": {f"module.{name}": tensor for name, tensor in net.items()}}
    torch.save(result, args.destination)
    print(f"{variant}: {len(state)} parameters written to {args.destination}")
    left = [
        str(key) for key, value in checkpoint.items() if key not in ("net", "model", "matching_heuristics")
    ]
    if "net" in checkpoint or "model" in checkpoint:
        print(f"left out: {', '.join(left) or 'nothing'}")
