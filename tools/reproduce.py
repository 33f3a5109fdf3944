"""Run the report's experiments again, and write the tables and figures that compare.

python tools/reproduce.py cifar|mri|coco|signal|all [--scale cpu|full] [--time-budget MINUTES]
                          [--device cpu|cuda] [--jobs N]
python tools/reproduce.py report            # tables and figures anew, from the records that are there

Every run is one of tools/train_net.py. One that has a record in results/reproduction/ is skipped, one that
was stopped goes on, and one that fails does not stop the others.
"""

import argparse
import fnmatch
import logging
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments/ is not installed

from experiments.experiment import GROUPS, SCALES, in_order  # noqa: E402
from experiments.report import write_report  # noqa: E402
from experiments.run import Run, command_text  # noqa: E402
from experiments.runner import Runner  # noqa: E402

# On two cores, two trainings of one thread each are faster than one after the other with two.
DEFAULT_JOBS = {"cpu": 2, "full": 1}


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*GROUPS, "all", "report"])
    parser.add_argument(
        "--scale",
        choices=SCALES[::-1],
        default="cpu",
        help="cpu: small networks, 10 minutes to some hours a run on a core; full: the report's, for a GPU",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        help="scale cpu runs on the CPU, with a GPU too, and full as its configs say, unless told here",
    )
    parser.add_argument(
        "--time-budget", type=float, metavar="MINUTES", help="stop then; a later call goes on"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=["1"],
        metavar="N",
        help="how many, from 1 on; or several: which (3 3: the third alone). Fold N - 1 of those with folds",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="so many runs side by side (2 on a CPU; full: 1, which has the GPU)",
    )
    parser.add_argument(
        "--experiments", "--arms", nargs="+", metavar="NAME", help="only these; * and ? as in file names"
    )
    parser.add_argument("--force", action="store_true", help="run again what has a record")
    parser.add_argument("--list", action="store_true", help="say what there is and how far it is")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    args = parser.parse_args(argv)
    if args.jobs is None:
        args.jobs = DEFAULT_JOBS[args.scale]
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    try:
        seeds = [int(seed) for seed in args.seeds]
    except ValueError:
        parser.error(f"--seeds must be whole numbers, got {' '.join(args.seeds)}")
    if min(seeds) < 1:
        parser.error(f"--seeds must be at least 1, got {' '.join(args.seeds)}")
    args.seeds = range(1, seeds[0] + 1) if len(seeds) == 1 else list(dict.fromkeys(seeds))
    return args


def choose(args):
    """The runs of a command line, seed by seed so that every experiment has one record before any has two."""
    experiments = [one for one in in_order() if args.what in (one.group, "all")]
    if args.experiments:
        unknown = [
            name for name in args.experiments if not fnmatch.filter([e.name for e in experiments], name)
        ]
        if unknown:
            sys.exit(f"error: no experiment is named {' or '.join(unknown)}; --list names those there are")
        experiments = [
            one
            for one in experiments
            if any(fnmatch.fnmatchcase(one.name, name) for name in args.experiments)
        ]

    def seeds(one):  # so many stands for all folds, where there are folds
        if not one.folds:
            return args.seeds
        folds = range(1, one.folds + 1)
        return folds if isinstance(args.seeds, range) else [seed for seed in args.seeds if seed in folds]

    runs = [
        Run(one, args.scale, seed, ROOT, args.device or "")
        for seed in dict.fromkeys(seed for one in experiments for seed in seeds(one))
        for one in experiments
        if seed in seeds(one)
    ]
    if not runs:
        sys.exit(f"error: {experiments[0].name} has the seeds 1 to {experiments[0].folds}, one for each fold")
    return runs


def main(argv=None):
    args = parse_args(argv)
    logging.getLogger("iso_d2").setLevel(logging.ERROR)
    if args.what == "report":
        print(write_report(ROOT))
        return 0
    runs = choose(args)
    if args.list:
        for run in runs:
            print(f"{run.name:45} {run.state()}")
        return 0
    if args.dry_run:
        for run in runs:
            if not isinstance(run.setting, str):
                print(*(command_text(command) for command in run.commands()), sep="\n")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):  # they end the runs as Ctrl-C does
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    budget = None if args.time_budget is None else 60 * args.time_budget
    runner = Runner(runs, parallel=args.jobs, budget=budget, force=args.force)
    good = runner.run()
    print(write_report(ROOT))
    for title, reasons in (("Skipped", runner.skipped), ("Failed", runner.failed)):
        for name, reason in reasons.items():
            print(f"{title}: {name}: {reason}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
