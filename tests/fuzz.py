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

import torch

from iso_d2.files import write_atomically
from iso_d2.provenance import git_state, hardware, versions

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # for python -m tests.fuzz
from damaged_files import KINDS, Wrong  # noqa: E402

SECONDS = 20


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


def run(cases, first=0, kinds=tuple(KINDS)):
    """dict: by kind, how many cases had which outcome; and a list of the failures."""
    counts, failures = {kind: collections.Counter() for kind in kinds}, []
    for case in range(first, first + cases):
        kind = kinds[case % len(kinds)]
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
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--first", type=int, default=0, help="number of the first case, which is its seed")
    parser.add_argument("--output", type=Path, help="a json file to add the result to")
    options = parser.parse_args(arguments)
    result = run(options.cases, options.first, options.kinds)
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
