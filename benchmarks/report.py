"""Results as tables on the screen and in Markdown, and the json file that holds them."""

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from iso_d2.files import write_atomically
from iso_d2.provenance import git_state, hardware, versions

from .options import ROOT


@dataclass(frozen=True)
class Table:
    """One table of a part. Columns keep the order in which they first come."""

    title: str  # what is compared, at what input
    rows: list  # column -> a number, a string, None, {"median", "q1", "q3"} or what `judge` returns


def judge(value, at_most=None, at_least=None, percent=False):
    """A ratio, or the median of its quartiles, beside a target: ``text``, "at least 3x: met", and ``met``."""
    value = value["median"] if isinstance(value, dict) else value
    met = value <= at_most if at_least is None else value >= at_least
    word, limit = ("at most", at_most) if at_least is None else ("at least", at_least)
    limit = f"{100 * limit:g}%" if percent else f"{limit:g}x"
    return {"text": f"{word} {limit}: {'met' if met else 'missed'}", "met": met}


def as_text(table, tablefmt="simple"):
    """A table under its title: str, in a format of tabulate's."""
    rows = [{column: _format(value) for column, value in row.items()} for row in table.rows]
    return f"{table.title}\n\n{tabulate(rows, headers='keys', tablefmt=tablefmt, disable_numparse=True)}\n"


def as_markdown(document):
    """All tables of a results file in Markdown, each part under what it ran on: str."""
    lines = []
    for name, part in document["parts"].items():
        lines += [f"### {name}", "", _ran_on(part), ""]
        lines += [as_text(Table(**table), "github") for table in part["tables"]]
    return "\n".join(lines)


def _ran_on(part):
    context, options = part["context"], part["options"]
    # earlier versions had the hardware beside the rest, under other names
    machine = context.get("hardware") or {**context, "cpu": context["processor"]}
    # a machine with a GPU can measure its CPU, too
    on_cpu = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    return (
        f"{machine['gpu'] if options['device'] == 'cuda' else on_cpu}; {options['dtype']}"
        f"{', channels last' if options['channels_last'] else ''}; "
        f"{', '.join(f'{name} {version}' for name, version in context['versions'].items())}; "
        f"commit {context['commit'][:8]}{', changed' if context.get('dirty') else ''}; "
        f"{context['date'][:10]}; {part['seconds']:.0f} s."
    )


def _format(value):
    if value is None:
        return ""
    if isinstance(value, dict):
        if "text" in value:
            return value["text"]
        return f"{_format(value['median'])} ({_format(value['q1'])} to {_format(value['q3'])})"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"
    return str(value)


def describe_run(options):
    """What a measurement depends on beside its settings: date (UTC), commit, versions and hardware."""
    if options.device == "cuda":
        torch.cuda.init()  # this process uses it, so torch may tell its name
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **git_state(ROOT),
        "versions": versions(),
        "hardware": hardware(options.device, torch.get_num_threads()),
    }


def read_results(path):
    """What a results file holds, or an empty document where there is none; ValueError for another file."""
    path = Path(path)
    if not path.exists():
        return {"parts": {}}
    try:
        document = json.loads(path.read_text())
        if isinstance(document["parts"], dict):
            return document
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} holds no benchmark results: move it away, or name another output")


def write_part(path, name, tables, context, options, seconds):
    """Put a part, which took so many seconds, into a results file, in place of its earlier self.

    The other parts stay as they are. A file that holds something else is a ValueError.
    """
    document = read_results(path)
    document["parts"][name] = {
        "context": context,
        "options": asdict(options),
        "seconds": seconds,
        "tables": [asdict(table) for table in tables],
    }
    write_atomically(path, json.dumps(document, indent=1) + "\n")
