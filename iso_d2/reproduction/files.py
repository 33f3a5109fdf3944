"""What a training leaves behind, and commands as one types them."""

import json
import os
import re
from pathlib import Path


def read_metrics(path):
    """list[dict]: the lines of a metrics.json; a last one that is not written to its end does not count."""
    lines = []
    if os.path.isfile(path):
        for text in Path(path).read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return [line for line in lines if "iteration" in line]


def command_text(command):
    """A command as one would type it: ``python`` in place of the interpreter's path."""
    return " ".join(
        f'"{word}"' if re.search(r"[^\w./=:,@%+-]", word) else word for word in ["python", *command[1:]]
    )
