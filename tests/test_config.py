"""The configuration keys: added once, explained, and read."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from iso_d2 import config
from iso_d2.evaluation import SegmentationEvaluator
from iso_d2.modeling import ISONet, UNet, UNetSegmentor

SOURCES = Path(config.__file__).parent
# Nodes whose keys are arguments of the same name
ARGUMENTS = {
    "MODEL.ISONET": [ISONet],
    "MODEL.UNET": [UNet, UNetSegmentor.__init__.__wrapped__],
    "TEST.SEGMENTATION": [SegmentationEvaluator],
}


def keys(node, prefix=""):
    """The dotted names of all values below a node."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.fixture(scope="module")
def added():
    """The keys that add_iso_config adds to Detectron2's."""
    cfg = get_cfg()
    before = set(keys(cfg))
    config.add_iso_config(cfg)
    return sorted(set(keys(cfg)) - before)


def test_a_second_call_changes_nothing():
    cfg = get_cfg()
    config.add_iso_config(cfg)
    once = cfg.dump()
    config.add_iso_config(cfg)
    assert cfg.dump() == once


def test_keys_that_exist_keep_their_values():
    cfg = get_cfg()
    cfg.MODEL.UNET = CfgNode({"DEPTH": 3, "MINE": 1})
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    stock = {key: value for key, value in cfg.SOLVER.items() if not isinstance(value, CfgNode)}
    config.add_iso_config(cfg)
    assert (cfg.MODEL.UNET.DEPTH, cfg.MODEL.UNET.MINE, cfg.MODEL.UNET.UP_KERNEL) == (3, 1, 2)
    assert cfg.SOLVER.CLIP_GRADIENTS.ENABLED and cfg.SOLVER.CLIP_GRADIENTS.ADAPTIVE == 0
    assert {key: cfg.SOLVER[key] for key in stock} == stock


def test_one_config_s_values_are_not_another_s():
    first, second = get_cfg(), get_cfg()
    for cfg in (first, second):
        config.add_iso_config(cfg)
    first.MODEL.ISONET.OUT_FEATURES.append("res5")
    assert second.MODEL.ISONET.OUT_FEATURES == ["res4"]


def uncommented(lines):
    """The keys among source lines without a comment line above them, or above the group that names them."""
    found, comment, is_first = [], "", True
    for line in map(str.strip, lines):
        if line.startswith("#"):
            comment, is_first = (line if not is_first or not comment else f"{comment} {line}"), True
        elif match := re.match(r"cfg\.([\w.]+) = (?!CN\(\))", line):
            name = match[1].rpartition(".")[2]
            if not comment or not (is_first or re.search(rf"\b{name}\b", comment)):
                found.append(match[1])
            is_first = False
        elif not line or line.endswith("CN()"):
            comment, is_first = "", True
    return found


def test_every_key_has_a_comment():
    source = inspect.getsource(config).split("\n")
    assert uncommented(source) == []
    without = [line for line in source if "Weight decay of the SReLU" not in line]
    assert uncommented(without) == ["SOLVER.SRELU_WEIGHT_DECAY"]
    assert uncommented(["# of A", "cfg.A = 1", "cfg.B = 2", "# C", "cfg.C = 3"]) == ["B"]


def test_every_key_is_read(added):
    """As an attribute or by its name in some file, or as an argument of what takes the whole node."""
    names = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path.name != "config.py" else ():
            names |= {node.attr} if isinstance(node, ast.Attribute) else set()
            names |= {node.value} if isinstance(node, ast.Constant) else set()
    assert len(added) > 70

    def is_read(key):
        node, _, name = key.rpartition(".")
        takes = (inspect.signature(taker).parameters for taker in ARGUMENTS.get(node, ()))
        return name in names or any(name.lower() in parameters for parameters in takes)

    assert [key for key in added if not is_read(key)] == []
    assert not is_read("MODEL.UNET.NO_SUCH_KEY")
