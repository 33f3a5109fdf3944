"""The figures of docs/performance.md and the results that they come from, for test_figures_in_docs.py."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    return json.loads((ROOT / "results" / name).read_text())


def bench(part, table, *cells, file=None):
    """Figures of a table at (row, column), of a distribution its median; `file`: parts; None: BENCHMARK."""
    rows = (file or BENCHMARK)[part]["tables"][table]["rows"]
    values = [rows[row][column] for row, column in cells]
    return [value["median"] if isinstance(value, dict) else value for value in values]


def floats(text):
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


BENCHMARK = load("benchmark_cpu.json")["parts"] | load("gpu_counts.json")["parts"]
AVX2 = load("benchmark_cpu_avx2.json")["parts"]
PRODUCTS, FLOOR = "1e9 multiply-adds", "floor, ms"
OURS, RATIO, SAVED, LAUNCHES = (0, "ms"), "ours over it", "saved, MiB", (0, "launches")
WIDTHS = bench(
    "scaling", 1, *((r, f"penalty, {form}, ms") for r in (0, 3) for form in ("paper's form", "iso_d2"))
)
PROCESSES = bench("scaling", 4, (0, "ms"), (1, "ms"))
DETECTORS = ["R-ISONet-50", "R-ISONet-50, penalty at every step", "ResNet-50, batch norm"]
DETECTORS += ["ResNet-50, frozen batch norm", "ResNet-50, group norm"]
FED, FEED = "images / s of a core", ("batch", "1e9 multiply-adds an image", "MB an image", "launches a step")
FEED += ("images / s of a GPU, estimated", "cores")
COMPILED = ("R-ISONet-20 classifier, 64x3x32x32", "ISO-UNet, 8 channels, 8x3x112x112")
STEP = ("forward and backward, ms", "penalty, ms", "all-reduce, ms", "penalty over step")

PERFORMANCE = [
    *(
        (
            f"| {row['data']} | # | {row['config']}, # | # | # | # | # | # |",
            [row[FED]["median"], *(row[column] for column in FEED)],
        )
        for row in BENCHMARK["appetite"]["tables"][0]["rows"]
    ),
    (
        "in # launches with the flip and # with the crop",
        bench("appetite", 0, *((row, "launches of a batch's augmentation") for row in (5, 6))),
    ),
    ("the slowest process has # of the work", bench("many_gpus", 0, (3, "largest share"))),
    (
        "# ms alone, # ms in the slower of two, # ms in the",
        bench("many_gpus", 2, *((r, "slowest, ms") for r in range(3))),
    ),
    ("which are # and # of what", bench("many_gpus", 2, (1, "slowest over all"), (2, "slowest over all"))),
    *(
        (f"| {gpus} | # | # | # | # |", bench("many_gpus", 1, *((row, column) for column in STEP)))
        for row, gpus in enumerate((1, 8, 64, 512))
    ),
    *(
        (
            f"| {case} | # ms | # ms | # | # s |",
            bench("compile", table, (0, "ms"), (1, "ms"), (0, RATIO), (1, "first step (s)")),
        )
        for table, case in enumerate(COMPILED)
    ),
    ("# launches, # in the paper's form", bench("launches", 0, (1, "launches"), LAUNCHES)),
    ("take #, those of ResNet-50 with batch norm #", bench("launches", 1, LAUNCHES, (1, "launches"))),
    ("takes #, with Detectron2's clipping #", bench("launches", 2, (1, "launches"), (1, "Detectron2's"))),
    ("| # ms | # ms in the paper's form |", bench("penalty", 0, (1, "ms"), (0, "ms"))),
    ("# times as fast (`exact`: #) |", bench("penalty", 0, (1, "times as fast"), (2, "times as fast"))),
    (
        "the penalty is # times as fast; the step takes # of batch norm's, # of frozen batch norm's, # of "
        "group norm's; inference # of frozen batch norm's",
        bench("penalty", 0, (1, "times as fast"), file=AVX2)
        + bench("step", 0, (1, RATIO), (2, RATIO), (3, RATIO), file=AVX2)
        + bench("inference", 0, (4, RATIO), file=AVX2),
    ),
    ("| # ms | # ms, ResNet-50 with batch norm | # |", bench("step", 0, OURS, (1, "ms"), (1, RATIO))),
    ("| # ms | # ms, frozen batch norm | # | none", bench("step", 0, OURS, (2, "ms"), (2, RATIO))),
    ("| # ms | # ms, group norm | # |", bench("step", 0, OURS, (3, "ms"), (3, RATIO))),
    ("| # MiB | # MiB, batch norm | # |", bench("memory", 0, (0, SAVED), (1, SAVED), (0, "over BN"))),
    ("# MiB for R-ISONet-50 at 4x3x224x224, # MiB for", bench("memory", 0, (0, SAVED), (1, SAVED))),
    (
        "| # ms | # ms, frozen batch norm | # | at most",
        bench("inference", 0, OURS, (4, "ms"), (4, RATIO)),
    ),
    ("| # ms | # ms, batch norm folded", bench("inference", 0, OURS, (2, "ms"))),
    ("folded into the convolutions | # |", bench("inference", 0, (2, RATIO))),
    (
        "any path | | the step | # % |",
        [100 * max(bench("data", 0, *((row, "wait over step") for row in range(4))))],
    ),
    ("exponent of #, the paper's form #,", floats(BENCHMARK["scaling"]["tables"][1]["title"])[::-1]),
    (
        "# times as fast at 64 channels, # times at 512 (n = #)",
        [WIDTHS[0] / WIDTHS[1], WIDTHS[2] / WIDTHS[3], *bench("scaling", 1, (0, "n"))],
    ),
    ("falls from # to # ms a step (#)", [*PROCESSES, PROCESSES[1] / PROCESSES[0]]),
    (
        "bound: # G multiply-adds at # G",
        bench("machine", 1, (0, PRODUCTS)) + bench("machine", 0, (0, "measured")),
    ),
    ("take # ms. # ms were measured", bench("machine", 1, (0, FLOOR)) + bench("penalty", 0, (1, "ms"))),
    ("take # G multiply-adds, or # ms at the rate", bench("machine", 1, (2, PRODUCTS), (2, FLOOR))),
    ("matrix products. R-ISONet-50 takes # ms", bench("step", 0, OURS)),
    ("# ms with SGD, # ms without the penalty (n = #)", bench("step", 1, OURS, (1, "ms"), (0, "n"))),
    ("(n = #): | Faster R-CNN FPN", bench("step", 2, (1, "n"))),
    ("the penalty is # % of the step", [100 * bench("step", 2, (1, "penalty's share"))[0]]),
    *((f"| {network} | # |", bench("step", 2, (row, "ms"))) for row, network in enumerate(DETECTORS)),
]
