"""train_net.py by Detectron2's launcher, torchrun and SLURM; and what happens if a process is killed."""

import os
import re
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import engine_toys
import kills
import pytest
import torch
from detectron2.utils import comm
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from iso_d2.engine import Trainer


@pytest.fixture(autouse=True)
def data(toy_data, forked, usual_handlers):
    pass


@pytest.fixture
def run(load_tool):
    return load_tool("train_net").main


def directly(run):
    run()


def by_torchrun(run, nodes=1, processes=2, port=0, restarts=0):
    """What the command torchrun does, but the processes are forked."""
    options = {"rdzv_backend": "c10d", "rdzv_endpoint": f"127.0.0.1:{port}", "run_id": "toy"}
    options |= {"start_method": "fork", "monitor_interval": 0.1, "max_restarts": restarts}
    elastic_launch(LaunchConfig(nodes, nodes, processes, **options), run)()


def command(output, run, launched_by, arguments, environment):
    """train_net.py with these arguments, in an environment."""
    torch.set_num_threads(1)
    os.environ |= {name: str(value) for name, value in environment.items()}
    sys.argv = ["train_net.py", "--config-file", str(output / "config_file.yaml"), *map(str, arguments)]
    launched_by(run)


def started(folder, run, commands, *opts):
    """Process groups of commands: (how to launch, arguments, environment). They share an output folder."""
    folder.mkdir()
    cfg = engine_toys.toy_config(folder / "output", "SEED", 1, "DATASETS.TEST", (), *opts)
    (folder / "config_file.yaml").write_text(cfg.dump())
    return [kills.start(folder, command, run, *parts) for parts in commands]


def launchers():
    """dict: name -> commands that start two processes in all."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    machine = partial(by_torchrun, nodes=2, processes=1, port=port)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_NTASKS": 2, "SLURM_NNODES": 2}
    url = ["--num-machines", 2, "--dist-url", f"tcp://127.0.0.1:{port}", "--machine-rank"]
    return {
        "detectron2": [(directly, ["--num-gpus", 2, "--dist-url", "auto"], {})],
        "two machines": [(directly, [*url, rank], {}) for rank in (0, 1)],
        "torchrun": [(by_torchrun, [], {})],
        "torchrun on two machines": [(machine, [], {})] * 2,
        "srun": [(directly, [], {**address, "SLURM_PROCID": rank, "SLURM_LOCALID": 0}) for rank in (0, 1)],
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
    """Process 1 is killed there, if torchrun has not started it again; a file says when."""
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("detectron2", "process 1 terminated with signal SIGKILL"),
        ("torchrun", r"rank +: 1 \(local_rank: 1\)\s+exitcode +: -9"),
    ],
)
def test_a_killed_process_ends_all_and_is_named(tmp_path, run, name, message, killed_at_step_5):
    opts = "SOLVER.MAX_ITER", 100_000, "DATALOADER.NUM_WORKERS", 1  # workers, too
    (group,) = started(tmp_path / "folder", run, launchers()[name], *opts)
    with pytest.raises(RuntimeError, match="failed by itself"):
        kills.wait_for(group)
    while members(group) and time.time() < killed_at_step_5.stat().st_mtime + 30:
        time.sleep(0.1)
    assert not members(group)
    assert re.search(message, (tmp_path / "folder" / "log.txt").read_text())


def test_torchrun_starts_again_and_ends_with_the_same_weights(tmp_path, run, killed_at_step_5):
    opts = "SOLVER.MAX_ITER", 9, "SOLVER.CHECKPOINT_PERIOD", 3
    commands = [(partial(by_torchrun, restarts=1), ["--resume"], {})]
    for name in ("disturbed", "undisturbed"):
        (process,) = started(tmp_path / name, run, commands, *opts)
        kills.wait_for(process)
        assert killed_at_step_5.exists()
    assert kills.digest(tmp_path / "disturbed" / "output") == kills.digest(
        tmp_path / "undisturbed" / "output"
    )
