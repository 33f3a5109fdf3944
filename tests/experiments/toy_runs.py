"""Runs whose training is a script of a few lines, in a repository of their own."""

from experiments.experiment import Experiment, Setting
from experiments.run import Run
from iso_d2.files import write_atomically

# Takes the arguments of tools/train_net.py. MODEL.META_ARCHITECTURE says what it does; a whole training has
# ten iterations.
TRAIN = """
import json, subprocess, sys, time
from pathlib import Path

words = sys.argv[sys.argv.index("--config-file") + 2 :]
options = dict(zip(words[::2], words[1::2]))
folder = Path(options["OUTPUT_DIR"])
do = options["MODEL.META_ARCHITECTURE"]


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


if do == "fail":
    print("Traceback (most recent call last):\\nValueError: no such thing\\n")
    sys.exit(1)
if do == "diverge":
    sys.exit("FloatingPointError: Loss became infinite or NaN at iteration=7!\\nloss_dict = {}")
if do == "hang":
    child = subprocess.Popen(["sleep", "60"])
    (folder / "child").write_text(str(child.pid))
if do.startswith("meet "):  # another run, which must be there at the same time
    (folder / "here").touch()
    wait_for(folder.parents[1] / do.removeprefix("meet ") / "seed1" / "here")
if "--eval-only" in sys.argv:
    (folder / "evaluated").write_text(options["DATASETS.TEST"])
    sys.exit(0)
metrics = folder / "metrics.json"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for iteration in range(done, 10):
    if iteration == 3 and do in ("pause", "hang"):
        wait_for(folder / "go")
    with open(metrics, "a") as file:
        file.write(json.dumps({"iteration": iteration, "total_loss": 1.0}) + "\\n")
if do == "explode":
    sys.exit("FloatingPointError: Predicted boxes or scores contain Inf/NaN. Training has diverged.")
(folder / "model_final.pth").write_text("weights")
"""


def toy_repository(folder):
    """Path: a repository with a stand-in of tools/train_net.py and a config."""
    for name, text in (
        ("tools/train_net.py", TRAIN),
        ("configs/toy.yaml", "DATASETS:\n  TRAIN: ()\n  TEST: ()\nSOLVER:\n  MAX_ITER: 10\nVERSION: 2\n"),
    ):
        write_atomically(folder / name, text)
    return folder


def toy_run(root, name, do="train", setting=None, data=(), evaluate="", table="toys", **more):
    """A run that does `do`, on the data sets `data`."""
    options = ("MODEL.META_ARCHITECTURE", do, "DATASETS.TRAIN", str(tuple(data)))
    setting = setting or Setting("configs/toy.yaml", options, "a toy", evaluate)
    experiment = Experiment(name, "cifar", table, name, {"cpu": setting}, **more)
    return Run(experiment, "cpu", 1, root)
