"""The writers for Weights & Biases and MLflow, by modules with their calls, and by the packages if there."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import yaml
from detectron2.engine import HookBase
from engine_toys import toy_config

from iso_d2.engine import Trainer
from iso_d2.engine.checkpoint_hooks import TrainingStopped

OPTS = "SEED", 1, "SOLVER.MAX_ITER", 25, "SOLVER.CHECKPOINT_PERIOD", 22, "ISO.ORTHO.COEFF", 0.01


@pytest.fixture(autouse=True)
def data(toy_data):
    pass


class FakeWandb:
    """wandb.init and the methods of its Run."""

    def __init__(self):
        self.runs = []

    def init(self, *, dir, id, resume, config):
        run = SimpleNamespace(
            id=id or f"run{len(self.runs)}", config=config, logged=[], axis=None, ended=False
        )
        assert resume == "allow"
        run.define_metric = lambda name, step_metric: setattr(run, "axis", (name, step_metric))
        run.log = run.logged.append
        run.finish = lambda exit_code: setattr(run, "ended", "FAILED" if exit_code else "FINISHED")
        self.runs.append(run)
        return run


class FakeMLflow:
    """The functions of mlflow, which know the active run."""

    def __init__(self):
        self.runs = []

    def start_run(self, run_id=None):
        info = SimpleNamespace(run_id=run_id or f"run{len(self.runs)}")
        self.runs.append(SimpleNamespace(id=info.run_id, logged=[], ended=False))
        return SimpleNamespace(info=info)

    def log_text(self, text, artifact_file):
        assert artifact_file == "config.yaml"
        self.runs[-1].config = yaml.safe_load(text)

    def log_metrics(self, metrics, step=None):
        self.runs[-1].logged.append({"iteration": step, **metrics})

    def end_run(self, status):
        self.runs[-1].ended = status


@pytest.fixture(params=["wandb", "mlflow"])
def package(request, monkeypatch):
    fake = {"wandb": FakeWandb, "mlflow": FakeMLflow}[request.param]()
    monkeypatch.setitem(sys.modules, request.param, fake)
    return request.param, fake


class Stops(HookBase):
    def after_step(self):
        raise TrainingStopped("early")


def train(folder, name, *opts, resume=False):
    trainer = Trainer(toy_config(folder, *OPTS, "ISO.WRITERS", [name], *opts))
    trainer.resume_or_load(resume=resume)
    trainer.train()


def written(lines):
    """{(iteration, name): value}, NaN as a word."""
    return {
        (line["iteration"], name): "nan" if math.isnan(value) else value
        for line in lines
        for name, value in line.items()
        if name != "eta_seconds"  # the printer, which is first, writes it for the next
    }


def test_it_gets_what_metrics_json_gets(tmp_path, package):
    name, fake = package
    train(tmp_path, name)
    (run,) = fake.runs
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    wanted = written(lines)
    assert {step for step, _ in wanted} == {0, 19, 24, 25}
    assert wanted[25, "bbox/AP"] == pytest.approx(100) and (0, "ortho/total") in wanted
    assert written(run.logged) == wanted
    assert sum(len(line.keys() - {"eta_seconds"}) for line in run.logged) == len(wanted)  # nothing twice
    assert run.config["SOLVER"]["MAX_ITER"] == 25 and run.ended == "FINISHED"
    if name == "wandb":
        assert run.axis == ("*", "iteration")
    assert (tmp_path / f"{name}_run").read_text() == "run0"


def test_a_training_that_goes_on_goes_on_in_its_run(tmp_path, package):
    name, fake = package
    train(tmp_path, name, "SOLVER.MAX_ITER", 2)
    train(tmp_path, name, "SOLVER.MAX_ITER", 4, resume=True)
    train(tmp_path, name, "SOLVER.MAX_ITER", 4)  # anew: the old checkpoints are set aside
    assert [run.id for run in fake.runs] == ["run0", "run0", "run2"]
    assert min(line["iteration"] for line in fake.runs[1].logged) >= 2


def test_a_training_that_fails_fails_in_its_run(tmp_path, package):
    name, fake = package
    with pytest.raises(FloatingPointError, match="diverged"):
        train(tmp_path, name, "SOLVER.BASE_LR", 1e30)
    trainer = Trainer(toy_config(tmp_path, *OPTS, "ISO.WRITERS", [name]))
    trainer.register_hooks([Stops()])
    trainer.resume_or_load(resume=False)
    trainer.train()
    try:
        raise ValueError("what came before")
    except ValueError:
        train(tmp_path, name, "SOLVER.MAX_ITER", 1)
    assert [run.ended for run in fake.runs] == ["FAILED", "FINISHED", "FINISHED"]


def test_a_tracker_that_fails_stops_no_training(tmp_path, package, log):
    name, fake = package
    broken = iter([True, False])
    cls, call = (FakeMLflow, "log_metrics") if name == "mlflow" else (list, "append")
    real = getattr(cls, call)

    def fail(*args, **kwargs):
        if next(broken, False):
            raise ConnectionError("no network")
        return real(*args, **kwargs)

    if name == "mlflow":
        fake.log_metrics = lambda *args, **kwargs: fail(fake, *args, **kwargs)
    else:
        init = fake.init

        def start(**options):
            run = init(**options)
            run.log = lambda line: fail(run.logged, line)
            return run

        fake.init = start
    train(tmp_path, name)
    assert f"{name} got nothing, the training goes on: no network" in log.text
    assert {line["iteration"] for line in fake.runs[0].logged} == {
        0,
        24,
        25,
    }  # 0 is written later, 19 is lost


def test_a_run_that_cannot_start_stops_before_the_first_step(tmp_path, package):
    name, fake = package

    def refuse(**_):
        raise RuntimeError("not logged in")

    setattr(fake, "init" if name == "wandb" else "start_run", refuse)
    trainer = Trainer(toy_config(tmp_path, *OPTS, "ISO.WRITERS", [name]))
    trainer.run_step = lambda: pytest.fail("too late")
    with pytest.raises(RuntimeError, match="not logged in"):
        trainer.train()


def test_missing_packages_and_unknown_names(tmp_path, monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            ImportError, match=rf"ISO\.WRITERS '{name}' needs .*: pip install iso_d2\[{name}\]"
        ):
            Trainer(toy_config(tmp_path, "ISO.WRITERS", [name]))
    with pytest.raises(ValueError, match=r"ISO\.WRITERS must name some of wandb, mlflow, got tensorboard"):
        Trainer(toy_config(tmp_path, "ISO.WRITERS", ["tensorboard"]))


def test_names_that_mlflow_refuses(tmp_path, monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    (writer,) = Trainer(toy_config(tmp_path, "ISO.WRITERS", ["mlflow"]))._runs
    writer.start()
    writer._log({"bbox/AP-traffic light": 1.0, "[metric]x": 2.0, "AP-it's": 3.0}, 7)
    assert fake.runs[0].logged == [
        {"iteration": 7, "bbox/AP-traffic light": 1.0, "_metric_x": 2.0, "AP-it_s": 3.0}
    ]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_packages_themselves(tmp_path, monkeypatch, name):
    """Without a network: W&B offline, MLflow in files."""
    pytest.importorskip(name)
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    for key, value in (settings | {"MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri()}).items():
        monkeypatch.setenv(key, value)
    train(tmp_path, name, "SOLVER.MAX_ITER", 2)
    first = (tmp_path / f"{name}_run").read_text()
    train(tmp_path, name, "SOLVER.MAX_ITER", 4, resume=True)
    assert (tmp_path / f"{name}_run").read_text() == first
    if name == "mlflow":
        (values,) = tmp_path.glob(f"mlruns/0/{first}/metrics/bbox/AP")
        assert [float(x) for x in values.read_text().split()[1::3]] == pytest.approx([100, 100])
    else:
        assert len(list(tmp_path.glob(f"wandb/offline-run-*{first}/*.wandb"))) == 2
