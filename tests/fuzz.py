"""Damage files at random, and see what becomes of them.

    python -m tests.fuzz --cases 10000 --output results/robustness.json

A case is one file of a kind, damaged by its seed. It is good if what is read is right, judged by other code,
or if the error is one that iso_d2 raises itself and that names the file. Anything else is a failure: a crash,
a run of more than 20 seconds, an error from somewhere below, or a wrong result.
"""

import argparse
import collections
import json
import os
import random
import select
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch
from detectron2.data import detection_utils
from PIL import Image

from iso_d2.data.cifar.reading import CIFAR10, load_cifar
from iso_d2.data.coco.annotations import load_coco
from iso_d2.engine.checkpoint import IsoCheckpointer
from iso_d2.engine.setup import load_config
from iso_d2.files import read_image, write_atomically
from iso_d2.provenance import git_state, hardware, versions

SECONDS = 20
ROOT = Path(__file__).parents[1]
ODD = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    2**63,
    "",
    "a",
    "../../x",
    [],
    {},
    [[]],
    [0, 0],
    {"a": 1},
)


class Wrong(AssertionError):
    """What was read is not right."""


def damage_bytes(content, chance):
    """bytes, damaged in one of several ways."""
    content = bytearray(content)
    at = chance.randrange(len(content))
    way = chance.randrange(6)
    if way == 0:
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif way == 1:
        del content[at:]
    elif way == 2:
        del content[at : at + chance.randint(1, 64)]
    elif way == 3:
        content[at:at] = chance.randbytes(chance.randint(1, 64))
    elif way == 4:
        content[at : at + 256] = bytes(len(content[at : at + 256]))
    else:
        content[:] = chance.randbytes(chance.randint(0, 64))
    return bytes(content)


def damage_tree(tree, chance):
    """Replace, drop or double one value of nested lists and dicts, in place; the root stays."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = chance.choice(list(keys))
        if isinstance(node[key], (dict, list)) and node[key] and chance.random() < 0.8:
            node = node[key]
            continue
        way = chance.randrange(4)
        if way == 0:
            del node[key]
        elif way == 1 and isinstance(node, list):
            node.append(node[key])
        else:
            node[key] = chance.choice(ODD)
        return


def check_image(folder, chance):
    pixels = np.random.default_rng(chance.randrange(9)).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    suffix = chance.choice(["png", "png", "jpg", "bmp", "tif", "webp"])
    file = folder / f"image.{suffix}"
    Image.fromarray(pixels).save(file)
    whole = detection_utils.read_image(str(file), "RGB")
    file.write_bytes(damage_bytes(file.read_bytes(), chance))
    found = read_image(file, "RGB")
    # of these formats PNG alone has checksums
    if suffix == "png" and not np.array_equal(found, whole):
        raise Wrong("other pixels")
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
        raise Wrong(f"{found.dtype} {found.shape}")


def check_json(folder, chance):
    images = [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in range(2)]
    for image in images:
        Image.new("RGB", (40, 30)).save(folder / image["file_name"])
    square = {
        "bbox": [4, 5, 10, 10],
        "area": 100,
        "segmentation": [[4, 5, 14, 5, 14, 15, 4, 15]],
        "iscrowd": 0,
    }
    tree = {
        "info": {},
        "images": images,
        "annotations": [
            {"id": i + 1, "image_id": i % 2, "category_id": 1 + i % 2, **square} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    file = folder / "set.json"
    if chance.random() < 0.8:
        for _ in range(chance.randint(1, 3)):
            damage_tree(tree, chance)
        file.write_text(json.dumps(tree))
    else:
        file.write_bytes(damage_bytes(json.dumps(tree).encode(), chance))
    for record in load_coco(f"fuzz{chance.random()}", file, folder):
        if Path(record["file_name"]).resolve().parent != folder.resolve():
            raise Wrong(f"an image of another folder, {record['file_name']}")
        for annotation in record["annotations"]:
            x, y, width, height = annotation["bbox"]
            if not (-2 <= x < 40 and -2 <= y < 30 and 0 < width <= 44 and 0 < height <= 34):
                raise Wrong(f"box {annotation['bbox']}")
            if annotation["category_id"] not in (0, 1):
                raise Wrong(f"class {annotation['category_id']}")


def check_config(folder, chance):
    source = chance.choice(sorted((ROOT / "configs" / "quick").glob("*.yaml"))).read_text()
    source = source.replace("_BASE_: ..", f"_BASE_: {ROOT}/configs")
    if chance.random() < 0.5:
        content = damage_bytes(source.encode(), chance)
    else:
        lines = source.splitlines()
        odd = chance.choice(
            ["  A: 1", "MODEL: 3", "!!python/object/apply:os.abort []", "- a", "SOLVER: {BASE_LR: x}"]
        )
        lines.insert(chance.randint(0, len(lines)), odd)
        content = "\n".join(lines).encode()
    file = folder / "config.yaml"
    file.write_bytes(content)
    default, found = load_config(), load_config(file)
    for key in ("SOLVER", "TEST", "ISO"):
        for name, value in found[key].items():
            wanted = default[key][name]
            same = isinstance(value, type(wanted)) or (type(value), type(wanted)) in _ALIKE
            if wanted is not None and not same:
                raise Wrong(f"{key}.{name} is {value!r}")


_ALIKE = {(list, tuple), (tuple, list), (int, float)}


def check_checkpoint(folder, chance):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(5, 6))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    file = folder / "model.pth"
    torch.save({"model": state, "iteration": 3}, file)
    file.write_bytes(damage_bytes(file.read_bytes(), chance))
    for parameter in model.parameters():
        parameter.data.zero_()
    IsoCheckpointer(model).load(str(file))
    if not all(torch.equal(value, state[key]) for key, value in model.state_dict().items()):
        raise Wrong("other weights")


def check_cifar(folder, chance):
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir()
    whole = np.random.default_rng(1).integers(0, 10, (10_000, 3073), dtype=np.uint8)
    whole.tofile(batches / "test_batch.bin")
    content = damage_bytes((batches / "test_batch.bin").read_bytes(), chance)
    (batches / "test_batch.bin").write_bytes(content)
    found = load_cifar(CIFAR10, "test", folder)
    read = np.frombuffer(content, np.uint8).reshape(10_000, 3073)
    if found.labels.max() > 9 or not np.array_equal(found.labels, read[:, 0]):
        raise Wrong("labels")


KINDS = {
    "image": check_image,
    "json": check_json,
    "config": check_config,
    "checkpoint": check_checkpoint,
    "cifar": check_cifar,
}


def outcome(kind, seed):
    """What becomes of one case: "right", "named error", or what else happens; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(read)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            os.write(write, _try(kind, seed, Path(folder)).encode()[:4000])
            os._exit(0)
        os.close(write)
        found = b""
        if select.select([read], [], [], SECONDS)[0]:
            found = os.read(read, 4000)
        else:
            os.kill(process, signal.SIGKILL)
        os.close(read)
        _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"more than {SECONDS} s" if number == signal.SIGKILL else f"crash: signal {number}"
    return found.decode(errors="replace") or "no answer"


def _try(kind, seed, folder):
    torch.set_num_threads(1)  # a forked process must not wait for threads that it has not
    try:
        KINDS[kind](folder, random.Random(f"{kind} {seed}"))
    except Wrong as error:
        return f"wrong: {error}"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = "iso_d2" in Path(frame.filename).relative_to(Path(frame.filename).anchor).parts[:-1]
        named = folder.name in str(error) and len(str(error)) > len(str(folder)) + 40
        if ours and named:
            return "named error"
        return f"raw error: {type(error).__name__}: {str(error)[:200]} at {frame.filename}:{frame.lineno}"
    return "right"


def run(cases, first=0):
    """dict: by kind, how many cases had which outcome; and a list of the failures."""
    counts, failures = {kind: collections.Counter() for kind in KINDS}, []
    for case in range(first, first + cases):
        kind = list(KINDS)[case % len(KINDS)]
        found = outcome(kind, case)
        counts[kind][found.split(":")[0]] += 1
        if found not in ("right", "named error"):
            failures.append(f"{kind} {case}: {found}")
    return {"cases": cases, "outcomes": {kind: dict(c) for kind, c in counts.items()}, "failures": failures}


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, which is its seed")
    parser.add_argument("--output", type=Path, help="a json file to add the result to")
    options = parser.parse_args(arguments)
    result = run(options.cases, options.first)
    print(json.dumps(result, indent=1))
    if options.output:
        kept = json.loads(options.output.read_text()) if options.output.is_file() else {}
        kept["fuzz"] = result | {
            "command": f"python -m tests.fuzz {' '.join(arguments)}",
            **git_state(ROOT),
            "versions": versions(),
            "hardware": hardware("cpu", 1),
        }
        write_atomically(options.output, json.dumps(kept, indent=1) + "\n")
    return int(bool(result["failures"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
