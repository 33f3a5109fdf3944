"""The console command ``iso-d2``. The files of tools/ are the same commands."""

import argparse
import importlib
import shlex
import sys

from ..provenance import versions

# by name: the file here, and what it does
COMMANDS = {
    "train": ("train", "train or evaluate a model"),
    "find-lr": ("find_lr", "find a learning rate by a range test"),
    "folds": ("folds", "cross-validate a segmentation network by patient"),
    "predict": ("predict", "run a trained model on images"),
    "export": ("export", "write a trained model as ONNX, TorchScript or torch.export"),
    "analyze": ("analyze", "measure how far networks are from an isometry"),
    "report": ("report", "write one HTML page about a training"),
    "convert": ("convert", "convert checkpoints of the ISONet authors, and back"),
    "data coco": ("data_coco", "make a subset of COCO from an official annotation file"),
    "data cifar": ("data_cifar", "download, verify and unpack CIFAR-10 or CIFAR-100"),
    "data show": ("data_show", "draw what the mapper feeds the model"),
}


def as_typed(argv):
    """str: the command that runs, to be typed again; `argv` are its arguments, None: those of the process."""
    started = ["python"] if sys.argv[0].endswith(".py") else []
    return " ".join([*started, sys.argv[0], shlex.join(sys.argv[1:] if argv is None else argv)])


def fail(error):
    """End the process with the text of an error that says what to do, without its traceback."""
    sys.exit(f"error: {error.args[0] if isinstance(error, KeyError) else error}")


def add_opts(parser, what="changes to the config; last"):
    """Add the argument --opts, KEY VALUE pairs for the config, to a parser."""
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help=what)


def main(argv=None):
    """Run a command of `argv`, by default that of the process.

    Raises:
        SystemExit: there is no such command, or what the command itself exits with.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for words in (1, 2):
        name = " ".join(argv[:words])
        if name in COMMANDS:
            try:
                from .. import needs_detectron2  # noqa: F401
            except ImportError as error:
                sys.exit(f"error: {error}")
            sys.argv = [f"iso-d2 {name}", *argv[words:]]
            return importlib.import_module(f".{COMMANDS[name][0]}", __name__).main(argv[words:])
    width = max(map(len, COMMANDS))
    usage = "\n".join(
        ["usage: iso-d2 COMMAND ...; iso-d2 COMMAND --help says more", ""]
        + [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    )
    if argv[argv[:1] == ["data"] :][:1] in ([], ["-h"], ["--help"]):
        print(usage)
        return None
    if argv == ["--version"]:
        print(versions().get("iso_d2", "unknown, since it is not installed"))
        return None
    sys.exit(f"error: no command {' '.join(argv[:2])!r}\n{usage}")
