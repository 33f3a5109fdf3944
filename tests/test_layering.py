"""A file imports only downwards: tools, benchmarks | experiments, commands, engine | reporting,
data | modeling | evaluation | analysis,
isometry | config | files | needs_detectron2 | placement | provenance | randomness."""

import sys
from pathlib import Path

from reading_imports import imported_names

ROOT = Path(__file__).resolve().parents[1]
MODEL_ZOO = "detectron2.model_zoo"
# Packages beside iso_d2, which import it
WORKSHOPS = ("benchmarks", "experiments")
GROUND = {"isometry", "config", "files", "needs_detectron2", "placement", "provenance", "randomness"}
FIRST = GROUND | {"data", "modeling", "evaluation", "analysis"}
# What each part of iso_d2 may import beside itself. "" is iso_d2/__init__.py, which registers everything.
MAY_IMPORT = {
    "isometry": set(),
    "config": set(),
    "files": set(),
    "needs_detectron2": set(),
    "placement": set(),
    "provenance": set(),
    "randomness": set(),
    "data": GROUND,
    "modeling": GROUND,
    "evaluation": GROUND,
    "analysis": GROUND,
    "engine": FIRST,
    "reporting": GROUND | {"evaluation"},
    "commands": FIRST | {"engine", "reporting"},
    "": FIRST | {"engine"},
}


def forbidden(part, name):
    """Whether a file of this part of iso_d2 may not import this name."""
    top, *rest = name.split(".")
    if top == "iso_d2":
        return not rest or rest[0] not in MAY_IMPORT[part] | {part}
    if part == "isometry":
        return top not in {"torch", "triton", *sys.stdlib_module_names}
    return top in ("tools", "tests", *WORKSHOPS) or name.startswith(MODEL_ZOO)


def violations(root):
    """List, as sentences, every import under root/iso_d2 that does not go downwards."""
    found = []
    for path in sorted((root / "iso_d2").rglob("*.py")):
        module = path.relative_to(root).with_suffix("").parts
        part = "" if module == ("iso_d2", "__init__") else module[1]
        where = "/".join(module) + ".py"
        if part not in MAY_IMPORT:
            found.append(f"{where} is on no floor")
            continue
        names = imported_names(path, package=".".join(module[:-1]))
        found += [f"{where} imports {name}" for name in names if forbidden(part, name)]
    return found


def test_imports_go_downwards():
    assert violations(ROOT) == []


def test_nothing_imports_the_model_zoo():
    files = [path for folder in ("tools", "tests", *WORKSHOPS) for path in (ROOT / folder).rglob("*.py")]
    assert [
        path for path in files if any(n.startswith("detectron2.model_zoo") for n in imported_names(path))
    ] == []


def house(root, files):
    """Write a small iso_d2 with the given files."""
    for name, source in files.items():
        path = root / "iso_d2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_a_lawful_house_has_no_violation(tmp_path):
    files = {
        "__init__.py": "from . import data, engine",
        "isometry/a.py": "import math\nimport torch.nn\nfrom .b import c",
        "data/shapes.py": "from .. import config\nfrom iso_d2.data import mappers\nimport detectron2",
        "engine/trainer.py": "from ..data.shapes import x\nfrom iso_d2 import modeling",
    }
    assert violations(house(tmp_path, files)) == []


def test_every_kind_of_violation_is_found(tmp_path):
    files = {
        "config.py": "from .isometry import SReLU",
        "data/lazy.py": "def f():\n    from ..modeling import isonet",
        "data/shapes.py": "from .. import evaluation",
        "data/whole.py": "import iso_d2",
        "engine/zoo.py": "from detectron2 import model_zoo",
        "evaluation/up.py": "import iso_d2.engine.hooks",
        "isometry/arrays.py": "import numpy as np",
        "isometry/d2.py": "from detectron2.layers import Conv2d",
        "modeling/sub/deep.py": "from ...data.shapes import x",
        "modeling/top.py": "import tools.train_net",
        "modeling/workshop.py": "from benchmarks import timing",
        "other.py": "",
    }
    assert violations(house(tmp_path, files)) == [
        "iso_d2/config.py imports iso_d2.isometry.SReLU",
        "iso_d2/data/lazy.py imports iso_d2.modeling.isonet",
        "iso_d2/data/shapes.py imports iso_d2.evaluation",
        "iso_d2/data/whole.py imports iso_d2",
        "iso_d2/engine/zoo.py imports detectron2.model_zoo",
        "iso_d2/evaluation/up.py imports iso_d2.engine.hooks",
        "iso_d2/isometry/arrays.py imports numpy",
        "iso_d2/isometry/d2.py imports detectron2.layers.Conv2d",
        "iso_d2/modeling/sub/deep.py imports iso_d2.data.shapes.x",
        "iso_d2/modeling/top.py imports tools.train_net",
        "iso_d2/modeling/workshop.py imports benchmarks.timing",
        "iso_d2/other.py is on no floor",
    ]
