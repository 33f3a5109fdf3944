"""MODEL_ZOO.md: every run with what it cost and how to make it again."""

from ..files import write_atomically
from .arm import SCALES
from .arms import ARMS
from .report_values import TABLES
from .tables import value_of

HEADER = """# Trained models

One row a run that `tools/reproduce.py` has made; written by it from `results/reproduction/`. The checkpoints
stay on the machine that made them, as `model_final.pth` in `output/reproduce/SCALE/ARM/seedK`; their SHA-256
begins with the digits given. Each record holds the command of `tools/train_net.py` in full.

"""
COLUMNS = (
    "network, run",
    "config",
    "trained on",
    "result",
    "s / iteration",
    "peak memory",
    "parameters",
    "multiply-adds",
    "checkpoint",
)


def write_zoo(root, records):
    """Write MODEL_ZOO.md, if there is any record.

    Args:
        root (Path): the repository.
        records (dict): scale -> arm -> list of records.

    Returns:
        Path or None: the file.
    """
    if not any(records.values()):
        return None
    lines = []
    for scale in SCALES:
        rows = [row(record) for arm in ARMS for record in records.get(scale, {}).get(arm.name, [])]
        if rows:
            lines += [
                f"## Scale {scale}",
                "",
                f"    python tools/reproduce.py all --scale {scale} --force --arms RUN --seeds 1",
                "",
            ]
            lines += [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *map(_line, rows), ""]
    path = root / "MODEL_ZOO.md"
    write_atomically(path, HEADER + "\n".join(lines).rstrip() + "\n")
    return path


def row(record):
    """list[str]: the cells of one run."""
    file = f"results/reproduction/{record['scale']}/{record['arm']}-seed{record['seed']}.json"
    gpu = record["peak_gpu_memory_mb"]
    memory = f"{gpu / 1024:.1f} GB of GPU" if gpu else f"{record['peak_memory_mb'] / 1024:.1f} GB"
    flops, digest = record["flops"], record["checkpoint_sha256"]
    return [
        f"{record['net']}: [{record['arm']}, seed {record['seed']}]({file})",
        f"`{record['config']}`",
        f"{record['dataset']}, {record['iterations']:,} iterations of batch {record['batch']}",
        result(record),
        "-" if record["seconds_per_iteration"] is None else f"{record['seconds_per_iteration']:.3g}",
        memory,
        f"{record['parameters'] / 1e6:.2f} M",
        "-" if flops is None else f"{flops / 1e9:.3g} G",
        f"`{digest[:12]}`" if digest else "-",
    ]


def result(record):
    """str: the first metric of the run's table that it has."""
    if record["diverged_at"] is not None:
        return f"diverged at iteration {record['diverged_at']}"
    for table in TABLES:
        for metric in table.metrics if table.arms == record["table"] else ():
            value = value_of(record, metric)
            if value is not None:
                return f"{metric.heading} {value:.{metric.digits}f}"
    return "-"


def _line(cells):
    return f"| {' | '.join(cells)} |"
