"""Train or evaluate a model.

iso-d2 train --config-file FILE [--num-gpus N] [--resume] [--eval-only] [KEY VALUE ...]

Without CUDA it runs on the CPU, with --num-gpus N in N processes. torchrun or SLURM's srun may start the
processes instead (torchrun --nproc-per-node N -m iso_d2.commands train ...); --num-gpus does not count then.
"""

import contextlib
import datetime
import json
import sys
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..engine import Trainer
from ..engine.setup import find_config, join_processes, setup
from ..files import write_atomically
from ..provenance import RUNS, git_state, hardware, versions
from . import as_typed, fail


def parse_args(argv):
    parser = default_argument_parser()
    parser.description = __doc__
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        if args.config_file:
            find_config(args.config_file)
    except FileNotFoundError as error:
        fail(error)
    start(train, args, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)


def start(run, argument, num_gpus, num_machines=1, machine_rank=0, dist_url="auto"):
    """Call ``run(argument)`` in this process or in several, which something else may have started."""
    if join_processes():
        run(argument)
        return
    if num_gpus > 1 and not torch.cuda.is_available():
        print(f"No CUDA device here: running {num_gpus} processes on the CPU")
    try:
        launch(run, num_gpus, num_machines, machine_rank, dist_url, args=(argument,))
    except ProcessExitedException as error:
        if error.signal_name:
            raise
        sys.exit(error.exit_code)  # the process has said why


def train(args):
    """Run one process; `args` are those of Detectron2's ``default_argument_parser``."""
    try:
        cfg = setup(args)
    except (AssertionError, FileNotFoundError, KeyError, ValueError) as error:
        fail(error)
    if comm.is_main_process():
        record_run(Path(cfg.OUTPUT_DIR, RUNS), cfg.MODEL.DEVICE)
    if args.eval_only:
        results = Trainer.evaluate(cfg, resume=args.resume)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def record_run(path, device):
    """Add how this command was started to a json file of those before it.

    It holds a list of dicts with ``command``, ``date``, ``versions``, ``hardware`` and, of the checkout that
    iso_d2 runs from, ``commit`` and ``dirty`` (:func:`~iso_d2.provenance.git_state`).
    """
    runs = []
    with contextlib.suppress(OSError, ValueError):
        runs = json.loads(path.read_text(encoding="utf-8"))
    root = Path(__file__).parents[2]
    run = {
        "command": as_typed(None),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        # an installed package may lie in the checkout of something else
        **(git_state(root) if (root / ".git").exists() else {"commit": "unknown", "dirty": False}),
        "versions": versions(),
        "hardware": hardware(device, torch.get_num_threads()),
    }
    write_atomically(path, json.dumps([*runs, run] if isinstance(runs, list) else [run], indent=1))
