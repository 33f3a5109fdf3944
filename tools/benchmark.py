"""Measure what isometric networks cost against others, and show it beside the targets.

python tools/benchmark.py [machine|penalty|activation|step|memory|inference|data|all ...] [--scaling] [...]
python tools/benchmark.py profile           # where the time of a training step goes
python tools/benchmark.py compile           # steps with torch.compile beside those without
python tools/benchmark.py launches          # how many kernels a GPU would be asked for
python tools/benchmark.py appetite many_gpus    # what GPUs would take, estimated from counts
python tools/benchmark.py report [--output FILE]

Alternatives are measured in turns within one run; each part is written to the output as soon as it is done.
`report` prints what the output holds as Markdown.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import DTYPES, Options
from benchmarks.report import as_markdown, read_results
from benchmarks.run import ALL, PARTS, run_benchmark

NAMED = tuple(part for part in PARTS if part != "scaling")


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(NAMED)}, all (default) or report"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU; as torch has it")
    parser.add_argument(
        "--repeats", type=int, default=15, metavar="N", help="most rounds of a comparison (15)"
    )
    parser.add_argument(
        "--time-budget", type=float, default=11.0, metavar="MIN", help="for all the parts named (11)"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--batch", type=int, metavar="N", help="images of a classifier (4; on a GPU 64)")
    parser.add_argument("--size", type=int, nargs=2, default=[224, 224], metavar=("H", "W"))
    parser.add_argument("--detector-batch", type=int, metavar="N", help="images of a detector (1; 16)")
    parser.add_argument("--detector-size", type=int, nargs=2, metavar=("H", "W"), help="(320 320; 800 1333)")
    parser.add_argument("--depth", type=int, default=50, metavar="N", help="of all networks (50)")
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="how costs grow, with a figure in docs/figures; alone or after the parts",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="(results/benchmark_<device>.json)")
    args = parser.parse_args(argv)
    if wrong := [part for part in args.parts if part not in (*NAMED, "all", "report")]:
        parser.error(f"parts are {', '.join(NAMED)}, all and report, got {', '.join(wrong)}")
    if "report" in args.parts and (len(args.parts) > 1 or args.scaling):
        parser.error("report goes alone")
    for name in ("threads", "repeats", "batch", "detector_batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    args.output = args.output or Path("results") / f"benchmark_{args.device}.json"
    return args


def chosen_parts(args):
    """The parts in their order."""
    named = [*args.parts, *(["scaling"] if args.scaling else [])] or ["all"]
    return [part for part in PARTS if part in named or ("all" in named and part in ALL)]


def main(argv=None):
    args = parse_args(argv)
    try:
        if args.parts == ["report"]:
            if not args.output.is_file():
                sys.exit(f"error: there is no {args.output}: run the benchmark first")
            print(as_markdown(read_results(args.output)))
            return
        if args.threads:
            torch.set_num_threads(args.threads)
        given = {name: value for name, value in vars(args).items() if name in Options.__annotations__}
        options = Options(**{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()})
        run_benchmark(chosen_parts(args), options, 60 * args.time_budget, args.output)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
