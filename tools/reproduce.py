"""Run the report's experiments again, and write the tables and figures that compare.

python tools/reproduce.py cifar|mri|coco|signal|all [--scale small|medium|full] [--time-budget MINUTES]
                          [--jobs N]
python tools/reproduce.py report            # tables and figures anew, from the results that are there

Every arm is a run of tools/train_net.py. One that has a result in results/reproduction/ is skipped, one that
was stopped goes on, and one that fails does not stop the others.
"""

import argparse
import fnmatch
import logging
import signal
import sys
from pathlib import Path

from iso_d2.reproduction.arm import GROUPS, SCALES
from iso_d2.reproduction.arms import in_order
from iso_d2.reproduction.files import command_text
from iso_d2.reproduction.jobs import Job
from iso_d2.reproduction.report import write_report
from iso_d2.reproduction.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
# On two cores, two trainings of one thread each are faster than one after the other with two.
DEFAULT_JOBS = {"small": 2, "medium": 2, "full": 1}


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*GROUPS, "all", "report"])
    parser.add_argument(
        "--scale",
        choices=SCALES[::-1],
        default="small",
        help="small: under an hour on two CPU cores; medium: more than an hour; full: a GPU",
    )
    parser.add_argument(
        "--time-budget", type=float, metavar="MINUTES", help="stop then; a later call goes on"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=["1"],
        metavar="N",
        help="how many, from 1 on; or several: which (3 3: the third alone)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="so many arms side by side (2 on a CPU; full: 1, which has the GPU)",
    )
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only these; * and ? as in file names")
    parser.add_argument("--force", action="store_true", help="run again what has a result")
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
    """The jobs of a command line, seed by seed so that every arm has one result before any has two."""
    arms = [arm for arm in in_order(args.scale) if args.what in (arm.group, "all")]
    if args.arms:
        arms = [arm for arm in arms if any(fnmatch.fnmatchcase(arm.name, name) for name in args.arms)]
        if not arms:
            sys.exit(f"error: no arm is named {' or '.join(args.arms)}; --list names those there are")
    return [Job(arm, args.scale, seed, ROOT) for seed in args.seeds for arm in arms]


def main(argv=None):
    args = parse_args(argv)
    logging.getLogger("iso_d2").setLevel(logging.ERROR)
    if args.what == "report":
        print(write_report(ROOT))
        return 0
    jobs = choose(args)
    if args.list:
        for job in jobs:
            print(f"{job.name:45} {job.state()}")
        return 0
    if args.dry_run:
        for job in jobs:
            if not isinstance(job.run, str):
                print(*(command_text(command) for command in job.commands()), sep="\n")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):  # they end the runs as Ctrl-C does
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    budget = None if args.time_budget is None else 60 * args.time_budget
    runner = Runner(jobs, parallel=args.jobs, budget=budget, force=args.force)
    good = runner.run()
    print(write_report(ROOT))
    for title, reasons in (("Skipped", runner.skipped), ("Failed", runner.failed)):
        for name, reason in reasons.items():
            print(f"{title}: {name}: {reason}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
