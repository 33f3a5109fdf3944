"""What a newcomer and a package installer rely on."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from reading_imports import imported_names

ROOT = Path(__file__).resolve().parents[1]
# Packages beside iso_d2 that no wheel holds
WORKSHOPS = ("benchmarks", "experiments")
# Names that differ between `import` and `pip install`
DISTRIBUTIONS = {
    "surface_distance": "surface-distance",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
}


def in_setup(argument):
    """What setup.py gives for an argument that it writes out."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == argument:
            return ast.literal_eval(node.value)


def install_requires():
    return {re.match(r"[\w-]+", text).group() for text in in_setup("install_requires")}


def extras():
    return {
        re.match(r"[\w-]+", text).group() for part in in_setup("extras_require").values() for text in part
    }


def project_files():
    """Tracked files, and new ones that are not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_setup_imports_nothing_that_may_be_missing():
    tops = {name.split(".")[0] for name in imported_names(ROOT / "setup.py")}
    assert tops <= {"setuptools", *sys.stdlib_module_names}


def test_setup_lists_what_iso_d2_imports():
    folders = ("iso_d2", *WORKSHOPS, "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = {
        name
        for path in files
        for name in imported_names(path, package=".".join(path.relative_to(ROOT).parts[:-1]))
    }
    tops = {name.split(".")[0] for name in names}
    # triton comes with torch where there is one, and is imported when it is asked for
    imported = tops - {"iso_d2", "detectron2", "triton", *WORKSHOPS} - set(sys.stdlib_module_names)
    assert {DISTRIBUTIONS.get(name, name) for name in imported} <= install_requires() | extras()
    # what is optional is imported in functions alone
    lines = [line for path in files for line in path.read_text().splitlines()]
    at_once = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert not at_once & extras()


def test_workshops_are_in_no_wheel(monkeypatch):
    found = {}
    monkeypatch.setattr("setuptools.setup", found.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    assert {package.split(".")[0] for package in found["packages"]} == {"iso_d2"}


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    """By setuptools' own build step: what lies in iso_d2 beside the code must be in package_data."""
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    built = {str(path.relative_to(tmp_path)) for path in (tmp_path / "iso_d2").rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(ROOT)) for path in project_files()}
    configs = {f"iso_d2/{name}" for name in wanted if re.fullmatch(r"configs/.+\.(yaml|py)", name)}
    assert built == configs | {name for name in wanted if name.startswith("iso_d2/")}
    assert "iso_d2/data/lgg/patients.tsv" in built


def test_an_installed_wheel_works_in_an_empty_folder(tmp_path):
    source, empty = tmp_path / "source", tmp_path / "empty"
    for path in project_files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    # what is installed here, but iso_d2: .pth files are not followed a second time
    Path(site, "here.pth").write_text(sysconfig.get_path("purelib"))
    install = ["pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation", source]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    empty.mkdir()
    train = [
        *(
            "train",
            "--config-file",
            "quick/risonet20_shapes_cls",
            "SOLVER.EPOCHS",
            "0",
            "SOLVER.MAX_ITER",
            "2",
        ),
        *("SOLVER.EPOCH_STEPS", "()", "SOLVER.WARMUP_EPOCHS", "0", "DATASETS.TEST", "()"),
        *("MODEL.ISONET.DEPTH", "8", "SOLVER.IMS_PER_BATCH", "4", "OUTPUT_DIR", "out"),
    ]
    command = [python.with_name("iso-d2"), *train]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(command, cwd=empty, capture_output=True, text=True, env=environment)
    assert (empty / "out" / "model_final.pth").is_file(), run.stderr
    assert f"{site}/iso_d2/configs/quick" in (empty / "out" / "log.txt").read_text()


def test_every_requirement_is_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines += re.search(r"^TORCH := (.+)$", (ROOT / "Makefile").read_text(), re.M).group(1).split()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if "==" not in line] == []
    # trackers are large, and tests have modules in their place
    assert install_requires() | extras() - {"mlflow", "wandb"} <= {line.split("==")[0] for line in pins}


def test_without_detectron2_the_mathematics_works_and_the_rest_says_how_to_get_it():
    """Without all packages but torch and what it imports itself."""
    code = """
import sys, torch
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
find = __import__("importlib.util").util.find_spec
__import__("importlib.util").util.find_spec = lambda name: None if name == "detectron2" else find(name)
sys.meta_path.insert(0, Missing())
import iso_d2
from iso_d2.isometry import SReLU, orthogonality_loss
print(SReLU(3)(torch.full((1, 3, 1, 1), -2.0)).flatten().tolist())
print(float(orthogonality_loss(torch.eye(4)[..., None, None])))
for part in ("data", "modeling", "evaluation", "analysis", "engine"):
    try:
        __import__(f"iso_d2.{{part}}")
    except ImportError as error:
        print(error)
import iso_d2.commands
iso_d2.commands.main(["train"])
"""
    missing = sorted({"detectron2", *(install_requires() | set(DISTRIBUTIONS)) - {"torch", "numpy"}})
    code = code.format(missing=missing)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    values, loss, *errors = run.stdout.splitlines()
    assert (values, loss) == ("[-1.0, -1.0, -1.0]", "0.0"), run.stderr
    assert len(errors) == 5 and run.returncode == 1
    for line in (*errors, run.stderr.strip().splitlines()[-1].removeprefix("error: ")):
        assert line.startswith("All of iso_d2 but iso_d2.isometry needs Detectron2"), line
        assert "make setup" in line and "pip install --no-build-isolation git+https" in line


def test_files_can_be_read_in_one_sitting():
    lengths = {path: len(path.read_text().splitlines()) for path in project_files() if path.suffix == ".py"}
    assert {path: length for path, length in lengths.items() if length > 300} == {}


@pytest.mark.parametrize(
    "what, pattern",
    [
        # A package index is the reader's own choice
        ("registry host", r"pypi\.org|pythonhosted\.|download\.pytorch\.org|npmjs\.|anaconda\.org"),
        ("path on somebody's machine", r"(?<![\w.~-])/(?:home|root|tmp|work|Users)/"),
    ],
)
def test_no_file_names_a(what, pattern):
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in re.finditer(pattern, text)]
    assert found == [], what
