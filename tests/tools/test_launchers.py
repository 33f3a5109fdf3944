"""train_net.py by Detectron2's launcher, torchrun and SLURM; and what happens if a process is killed."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import engine_toys
import kills
import pytest
import torch
from detectron2.utils import comm

from iso_d2.engine import Trainer


@pytest.fixture(autouse=True)
def data(toy_data, forked, usual_handlers):
    pass


@pytest.fixture
def run(load_tool):
    return load_tool("train_net").main


def command(output, run, arguments, environment):
    """train_net.py with these arguments, in an environment."""
    torch.set_num_threads(1)
    os.environ |= {name: str(value) for name, value in environment.items()}
    sys.argv = ["train_net.py", "--config-file", str(output / "config_file.yaml"), *map(str, arguments)]
    run()


def started(folder, run, commands, *opts):
    """Process groups of commands: (arguments, environment). They share an output folder."""
    folder.mkdir()
    cfg = engine_toys.toy_config(folder / "output", "SEED", 1, "DATASETS.TEST", (), *opts)
    (folder / "config_file.yaml").write_text(cfg.dump())
    return [kills.start(folder, command, run, *parts) for parts in commands]


def launchers():
    """dict: name -> commands that start two processes in all."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_STEP_NUM_TASKS": 2}
    address["SLURM_STEP_NUM_NODES"] = 2
    url = ["--num-machines", 2, "--dist-url", f"tcp://127.0.0.1:{port}", "--machine-rank"]
    world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    return {
        "detectron2": [(["--num-gpus", 2, "--dist-url", "auto"], {})],
        "two machines": [([*url, rank], {}) for rank in (0, 1)],
        # what torchrun sets; itself it would fork processes that have threads already, which can hang
        "torchrun": [([], {**address, "RANK": r, "LOCAL_RANK": r, **world}) for r in (0, 1)],
        "srun": [([], {**address, "SLURM_PROCID": rank, "SLURM_LOCALID": 0}) for rank in (0, 1)],
    }


def test_all_launchers_train_alike(tmp_path, run):
    digests = {}
    for name, commands in launchers().items():
        for process in started(tmp_path / name, run, commands):
            kills.wait_for(process)
        output = tmp_path / name / "output"
        assert torch.load(output / "model_final.pth")["trainer"]["processes"] == 2, name
        digests[name] = kills.digest(output)
    assert len(set(digests.values())) == 1, digests


@pytest.fixture
def killed_at_step_5(tmp_path, monkeypatch):
    """Process 1 is killed there, and a file says when."""
    run_step, file = Trainer.run_step, tmp_path / "killed"

    def dying_run_step(self):
        if comm.get_rank() == 1 and self.iter == 5 and not file.exists():
            file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", dying_run_step)
    return file


def members(group):
    """list[int]: the living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_killed_process_ends_all_and_is_named(tmp_path, run, killed_at_step_5):
    opts = "SOLVER.MAX_ITER", 100_000, "DATALOADER.NUM_WORKERS", 1  # workers, too
    (group,) = started(tmp_path / "folder", run, launchers()["detectron2"], *opts)
    with pytest.raises(RuntimeError, match="failed by itself"):
        kills.wait_for(group)
    while members(group) and time.time() < killed_at_step_5.stat().st_mtime + 30:
        time.sleep(0.1)
    assert not members(group)
    assert "process 1 terminated with signal SIGKILL" in ((tmp_path / "folder" / "log.txt").read_text())
