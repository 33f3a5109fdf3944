"""README and docs: commands parse, Python blocks run, and what a page names is there."""

import functools
import importlib
import json
import pkgutil
import re
import shlex
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_backbone
from PIL import Image
from torch import nn
from torch.distributed import run as torchrun
from torch.nn import functional as F

from iso_d2.commands import COMMANDS
from iso_d2.config import add_iso_config
from iso_d2.engine import DeltaInitHook, OrthogonalityLossHook
from iso_d2.engine.setup import load_config
from iso_d2.engine.trained import FOLDER, list_models

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(
        str(path.relative_to(ROOT)) for folder in ("configs", "docs") for path in (ROOT / folder).glob("*.md")
    ),
]
KEY = r"(?:MODEL|SOLVER|ISO|INPUT|DATASETS|TEST)(?:\.[A-Z0-9_]+)+"


@pytest.fixture(params=NAMES)
def page(request):
    return request.param


@functools.cache
def read(page):
    return (ROOT / page).read_text()


def blocks(page):
    """(language, code) of each code block; one that is indented and not fenced has the language ''."""
    fence = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
    for _, language, code in fence.findall(read(page)):
        yield language, textwrap.dedent(code)
    for code in re.findall(r"(?<=\n\n)(?: {4}.*\n)+", fence.sub("", read(page))):
        yield "", textwrap.dedent(code)


def without_code(page):
    """The page without code blocks and comments."""
    return re.sub(r"^( *)```.*?^\1```$|<!--.*?-->", "", read(page), flags=re.M | re.S)


def commands(page):
    """The commands of a page's shell blocks, as lists of words."""
    for language, code in blocks(page):
        if language in ("bash", ""):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] != "export":
                    yield words


def test_commands_parse(page, load_tool, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    targets = re.findall(r"^(\w+):", read("Makefile"), re.M)
    for words in commands(page):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), words
            continue
        if words[0] == "pip":
            assert words[1] == "install", words
            continue
        if words[0] == "torchrun":
            started = torchrun.parse_args(words[1:])
            words = ["python", started.training_script, *started.training_script_args]
        elif words[0] == "srun":
            words = words[words.index("python") :]
        try:
            check_tool(*tool_and_arguments(words, load_tool))
        except (AssertionError, KeyError, SystemExit, ValueError) as error:
            pytest.fail(f"{shlex.join(words)}: {error} {capsys.readouterr().err}")


def tool_and_arguments(words, load_tool):
    if words[0] == "iso-d2":
        name = " ".join(words[1:3]) if words[1] == "data" else words[1]
        return importlib.import_module(f"iso_d2.commands.{COMMANDS[name][0]}"), words[1 + len(name.split()) :]
    assert words[0] == "python" and re.fullmatch(r"tools/\w+\.py", words[1]), words
    return load_tool(Path(words[1]).stem), words[2:]


def check_tool(tool, arguments):
    """The arguments parse; config, KEY VALUE pairs, data sets and names of experiments exist."""
    args = tool.parse_args(arguments)
    if tool.__name__ == "reproduce" and args.what != "report":
        assert not tool.main([*arguments, "--dry-run"])
    configs = [getattr(args, "config_file", None), *getattr(args, "models", [])]
    for config in filter(None, configs):
        cfg = load_config(config.partition("=")[0], args.opts)
        unknown = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} - set(DatasetCatalog.list())
        assert not unknown, f"no such data set: {unknown}"


def test_make_targets_exist(page):
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.M))
    for words in re.findall(r"`make ([\w ]+)[^`]*`", without_code(page)):
        assert set(words.split()[:1]) <= targets


FASTER_RCNN_FPN = """
MODEL:
  WEIGHTS: somewhere/R-50.pkl
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
"""


def run_python(page, folder):
    """What the Python blocks of a page define, each run with the variables that it takes for granted."""
    (folder / "your_faster_rcnn_fpn.yaml").write_text(FASTER_RCNN_FPN)
    for language, code in blocks(page):
        if language == "python":
            cfg, hooks = get_cfg(), []
            cfg.merge_from_file(folder / "your_faster_rcnn_fpn.yaml")
            names = {
                "cfg": cfg,
                "trainer": SimpleNamespace(register_hooks=hooks.extend, hooks=hooks),
                "images": torch.rand(2, 3, 64, 64),
                "labels": torch.tensor([3, 999]),
                "nn": nn,
                "F": F,
            }
            exec(compile(code.replace("depth=50", "depth=18"), page, "exec"), names)  # for time
            yield SimpleNamespace(**names)


def test_python_of_the_readme(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    detectron2, pytorch = run_python("README.md", tmp_path)
    assert [type(hook) for hook in detectron2.trainer.hooks] == [OrthogonalityLossHook]
    assert detectron2.cfg.MODEL.WEIGHTS == ""
    add_iso_config(detectron2.cfg)
    detectron2.cfg.MODEL.ISONET.DEPTH = 18
    backbone = build_backbone(detectron2.cfg)
    assert type(backbone.bottom_up).__name__ == "ISONet" and "p2" in backbone.output_shape()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    pytorch.loss.backward()
    assert len(pytorch.convs) == 19 and all(conv.weight.grad is not None for conv in pytorch.convs)


def test_python_of_the_isometry_page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    configured, hooked, plain = run_python("docs/isometry.md", tmp_path)
    # the stem and eight blocks of two convolutions, three of them with a projection
    backbone = build_backbone(configured.cfg).bottom_up
    assert len([module for module in backbone.modules() if isinstance(module, nn.Conv2d)]) == 20
    assert [type(hook) for hook in hooked.trainer.hooks] == [DeltaInitHook, OrthogonalityLossHook]
    assert plain.loss < 1e-6 and plain.layer(torch.rand(1, 64, 8, 8)).shape == (1, 64, 8, 8)
    torch.testing.assert_close(plain.sigma, torch.ones(64 * 14 * 14))


def test_python_of_the_trained_networks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 50)).save("slice.tif")
    (loaded,) = run_python("docs/trained.md", tmp_path)
    assert loaded.prediction.mask.shape == (50, 60) and Path("prediction.png").is_file()


def test_trained_networks_are_those_that_there_are():
    for name in list_models():
        metrics = json.loads((FOLDER / f"{name}.json").read_text())["metrics"]
        (row,) = re.findall(rf"^\| {name} \| .+ \| (.+) \|$", read("docs/trained.md"), re.M)
        shown = {float(number) for number in re.findall(r"(\d+\.\d+)(?= %| on|,)", row)}
        rounded = {round(value, digits) for value in metrics.values() for digits in (1, 2, 3)}
        assert shown and shown <= rounded, f"{name}: {row}"


def test_python_of_the_isometrize_page(tmp_path, capsys):
    (block,) = run_python("docs/isometrize.md", tmp_path)
    assert str(block.report).strip() == capsys.readouterr().out.strip()
    assert len(block.report.norms) == 53 and block.network(block.images).shape == (2, 10)


def test_no_other_page_has_python():
    with_python = {name for name in NAMES for language, _ in blocks(name) if language == "python"}
    assert with_python == {"README.md", "docs/isometrize.md", "docs/isometry.md", "docs/trained.md"}


def test_keys_exist_and_take_the_values(page):
    cfg = load_config()
    assert [key for key in re.findall(KEY, read(page)) if not has_key(cfg, key)] == []
    for code in re.findall(rf"`({KEY} [^`]+)`", without_code(page)):
        pairs = shlex.split(code)
        if not re.fullmatch("[a-z]", pairs[1]):  # a variable
            cfg.merge_from_list(pairs)


def has_key(cfg, key):
    for name in key.split("."):
        if name not in cfg:
            return False
        cfg = cfg[name]
    return True


def test_paths_and_names_of_python_exist(page):
    text = without_code(page)
    folders = r"(?:benchmarks|configs|docs|experiments|iso_d2|results|tests|tools)/"
    paths = re.findall(rf"`({folders}[\w./*-]*)`", text)
    assert [path for path in paths if not any(ROOT.glob(path.rstrip("/")))] == []
    for name in re.findall(r"`(iso_d2(?:\.\w+)+)", text):
        pkgutil.resolve_name(name)


def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", without_code(page))
    assert links
    for target, anchor in links:
        path = ROOT / page if not target else (ROOT / page).parent / target
        assert path.exists(), f"{page} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            slugs = [re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page} links to {target}#{anchor}, which has {', '.join(slugs)}"


def test_readme_is_one_page():
    text = re.sub(r"<!--.*?-->", "", read("README.md"), flags=re.S)
    assert len(re.findall(r"\S*\w\S*", text)) <= 900
