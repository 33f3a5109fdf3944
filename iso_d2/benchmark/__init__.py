"""Cost of the penalty, the activation, training, inference and the data paths, measured on this machine."""

from .memory import saved_bytes
from .options import Options, describe_run
from .penalty import paper_loss
from .report import Table, as_markdown, as_text, judge, read_results, write_part
from .run import ALL, PARTS, run_benchmark
from .timing import Comparison, compare, quartiles

__all__ = [
    "ALL",
    "PARTS",
    "Comparison",
    "Options",
    "Table",
    "as_markdown",
    "as_text",
    "compare",
    "describe_run",
    "judge",
    "paper_loss",
    "quartiles",
    "read_results",
    "run_benchmark",
    "saved_bytes",
    "write_part",
]
