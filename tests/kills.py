"""Kill trainings at random instants, resume them, and compare the finished weights with an undisturbed run's.

    python -m tests.kills classifier --kills 100 --seed 1 --output results/kills.json

A kill is SIGKILL to all processes of a training. Each training saves often and slowly, so that some kills
come within a save. A training that was killed goes on in a new process, with --resume, until it has finished.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm

from iso_d2.engine import Trainer
from iso_d2.engine.setup import load_config
from iso_d2.files import write_atomically
from iso_d2.provenance import git_state, hardware, versions

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "quick"
SAVES = "SOLVER.CHECKPOINT_PERIOD 5 SOLVER.CHECKPOINTS_KEPT 2 TEST.VISUALIZE 0 SEED 5 MODEL.DEVICE cpu"
STEPS = "SOLVER.EPOCHS 0 SOLVER.EPOCH_STEPS () SOLVER.WARMUP_EPOCHS 0 SOLVER.MAX_ITER 40"
# name -> config, KEY VALUE, processes; each takes some seconds
TRAININGS = {
    "classifier": (
        "risonet20_shapes_cls.yaml",
        "MODEL.ISONET.DEPTH 8 MODEL.ISONET.SIGNAL scaled MODEL.CLASSIFIER.DROPOUT 0.2 "
        + STEPS
        + " INPUT.CLASSIFICATION.CROP_PADDING 2 SOLVER.IMS_PER_BATCH 8 TEST.EVAL_PERIOD 9",
        1,
    ),
    # it stops early: the loss only falls
    "habits": (
        "risonet20_shapes_cls.yaml",
        "MODEL.ISONET.DEPTH 8 MODEL.ISONET.SIGNAL scaled MODEL.CLASSIFIER.DROPOUT 0.2 "
        + STEPS
        + " INPUT.CLASSIFICATION.CROP_PADDING 2 SOLVER.IMS_PER_BATCH 8 SOLVER.ACCUMULATE 2 SOLVER.EMA 0.9 "
        "TEST.EVAL_PERIOD 5 TEST.PATIENCE 4 TEST.BEST ['classification/loss','max']",
        1,
    ),
    "unet": (
        "isounet_phantom.yaml",
        "MODEL.UNET.DEPTH 3 MODEL.UNET.BASE_CHANNELS 4 "
        + STEPS
        + " INPUT.ALBUMENTATIONS.TRAIN [['HorizontalFlip',{'p':0.5}]] DATALOADER.NUM_WORKERS 0",
        1,
    ),
    "detector": (
        "risonet18_frcnn_shapes.yaml",
        "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 16 DATALOADER.NUM_WORKERS 2 ISO.ORTHO.PERIOD 2 "
        "DATASETS.TEST ()",
        1,
    ),
    "processes": (
        "risonet20_shapes_cls.yaml",
        "MODEL.ISONET.DEPTH 8 MODEL.ISONET.SIGNAL scaled " + STEPS + " SOLVER.IMS_PER_BATCH 8",
        2,
    ),
}


def main(arguments):
    options = _parse(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = endure(options.training, options.kills, options.seed, Path(folder))
    print(json.dumps(result, indent=1))
    if options.output:
        keep(options.output, options.training, result, f"python -m tests.kills {' '.join(sys.argv[1:])}")
    return int(result["equal"] < result["finished"])


def keep(file, name, result, command):
    """Add a result to a json file, with where it comes from."""
    kept = json.loads(file.read_text()) if file.is_file() else {}
    origin = {**git_state(ROOT), "versions": versions(), "hardware": hardware("cpu", 1)}
    kept[name] = result | {"command": command, **origin, "date": f"{datetime.date.today()}"}
    write_atomically(file, json.dumps(kept, indent=1) + "\n")


def endure(training, kills, seed, folder):
    """Kill a training until there were so many kills, and compare each one that finished in between.

    Returns:
        dict: the number of kills, of those within a save, of finished runs, and of those equal bit by bit.
    """
    begun = time.monotonic()
    wait_for(start(folder / "undisturbed", train, training))
    seconds = time.monotonic() - begun
    wanted = digest(folder / "undisturbed")
    chance, counts = random.Random(seed), {"kills": 0, "within a save": 0, "finished": 0, "equal": 0}
    while counts["kills"] < kills:
        output = folder / f"run{counts['finished']}"
        while not (output / "model_final.pth").is_file():
            process = start(output, train, training)
            if counts["kills"] < kills and not _ends_within(process, chance.uniform(0, 0.8 * seconds)):
                os.killpg(process, signal.SIGKILL)
                counts["kills"] += 1
                counts["within a save"] += bool(list(output.glob(".*.unfinished")))
            wait_for(process)
        counts["finished"] += 1
        counts["equal"] += digest(output) == wanted
    return counts


def digest(output):
    """str: of the finished weights and the optimizer's state, bit by bit."""
    state = torch.load(output / "model_final.pth", weights_only=True)
    momentum = state["trainer"]["_trainer"]["optimizer"]["state"]
    tensors = [*state["model"].values(), *(m["momentum_buffer"] for m in momentum.values())]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def train(output, training):
    """The training in this process, or in processes of its own."""
    config, options, processes = TRAININGS[training]
    cfg = load_config(CONFIGS / config, [*options.split(), *SAVES.split(), "OUTPUT_DIR", str(output)])
    if processes == 1:
        return train_by(cfg)
    return launch(train_by, processes, dist_url="auto", args=(cfg,))


def train_by(cfg):
    torch.set_num_threads(1)
    save = torch.save

    def slow_save(data, file, **options):
        # the first half, a pause, then all of it
        save(data, file, **options)
        if isinstance(file, Path):
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            time.sleep(0.1)
            file.write_bytes(whole)

    torch.save = slow_save
    torch.manual_seed(cfg.SEED)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    comm.synchronize()


def start(output, function, *arguments):
    """The number of a new process group that calls function(output, ...); forked, which saves the imports.

    What it writes is in log.txt in the folder `output`.
    """
    sys.stdout.flush()
    process = os.fork()
    if process:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(process, process)  # whichever comes first
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        output.mkdir(parents=True, exist_ok=True)
        log = os.open(output / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # a test runner may have put files of its own in their places
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        function(output, *arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _ends_within(process, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # not reaped yet, so that its number stays its own
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(0.01)
    return False


def wait_for(process):
    """Wait for the end of a process; RuntimeError if it failed by itself."""
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise RuntimeError("a training failed by itself; see log.txt in its folder")


def _parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training", choices=TRAININGS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a json file to add the result to")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
