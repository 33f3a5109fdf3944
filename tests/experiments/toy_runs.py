"""Arms whose training is a script of a few lines, in a repository of their own."""

from pathlib import Path

from iso_d2.reproduction.arm import Arm, Run
from iso_d2.reproduction.jobs import Job

# Takes the arguments of tools/train_net.py. DO says what it does; without a stop it makes 10 iterations.
TRAIN = """
import json, subprocess, sys, time
from pathlib import Path

words = sys.argv[sys.argv.index("--config-file") + 2 :]
options = dict(zip(words[::2], words[1::2]))
folder = Path(options["OUTPUT_DIR"])
do = options["DO"]
if do == "fail":
    print("Traceback (most recent call last):\\nValueError: no such thing\\n")
    sys.exit(1)
if do == "diverge":
    sys.exit("FloatingPointError: Loss became infinite or NaN at iteration=7!\\nloss_dict = {}")
if do == "hang":
    child = subprocess.Popen(["sleep", "60"])
    (folder / "child").write_text(str(child.pid))
    time.sleep(60)
if "--eval-only" in sys.argv:
    (folder / "evaluated").write_text(options["DATASETS.TEST"])
    sys.exit(0)
metrics = folder / "metrics.json"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for iteration in range(done, 10):
    time.sleep(0.3 if do == "slow" else 0)
    with open(metrics, "a") as file:
        file.write(json.dumps({"iteration": iteration, "total_loss": 1.0}) + "\\n")
if do == "explode":
    sys.exit("FloatingPointError: Predicted boxes or scores contain Inf/NaN. Training has diverged.")
(folder / "model_final.pth").write_text("weights")
"""


def toy_repository(folder):
    """Path: a repository with a stand-in of tools/train_net.py and a config."""
    (folder / "tools").mkdir()
    (folder / "tools" / "train_net.py").write_text(TRAIN)
    (folder / "configs").mkdir()
    (folder / "configs" / "toy.yaml").write_text("SOLVER:\n  MAX_ITER: 10\nVERSION: 2\n")
    return Path(folder)


def toy_job(root, name, do="train", needs=(), small=None, **more):
    """A job that does `do`."""
    run = Run("toy", "configs/toy.yaml", ("DO", do), "a toy", seconds=2.0, evaluate=more.pop("evaluate", ""))
    kind, absent = more.pop("table", "toys"), "not here"
    arm = Arm(name, "cifar", kind, name, needs, full=absent, medium=absent, small=small or run, **more)
    return Job(arm, "small", 1, root)
