"""Results as tables on the screen and in Markdown, and the json file that holds them."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """One table of a part.

    Args:
        title (str): what is compared, at what input.
        rows (list[dict]): column -> a number, a string, None, ``{"median", "q1", "q3"}`` or what `judge`
            returns. Columns keep the order in which they first come.
    """

    title: str
    rows: list


def judge(value, at_most=None, at_least=None, percent=False):
    """A ratio beside its target.

    Args:
        value (float or dict): the ratio, or its quartiles, of which the median counts.
        at_most, at_least (float): the target; exactly one of them.
        percent (bool): say the target in percent.

    Returns:
        dict: ``text`` ("at least 3x: met") and ``met``.
    """
    value = value["median"] if isinstance(value, dict) else value
    met = value <= at_most if at_least is None else value >= at_least
    word, limit = ("at most", at_most) if at_least is None else ("at least", at_least)
    limit = f"{100 * limit:g}%" if percent else f"{limit:g}x"
    return {"text": f"{word} {limit}: {'met' if met else 'missed'}", "met": met}


def as_text(table):
    """A table with aligned columns: str."""
    columns, cells = _cells(table)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    first, *others = zip(widths, zip(columns, *cells, strict=True), strict=True)
    aligned = [[cell.ljust(first[0]) for cell in first[1]]]
    aligned += [[cell.rjust(width) for cell in column] for width, column in others]
    lines = ["  ".join(line).rstrip() for line in zip(*aligned, strict=True)]
    return "\n".join([table.title, *(f"  {line}" for line in lines)])


def as_markdown(document):
    """All tables of a results file in Markdown, each part under what it ran on: str."""
    lines = []
    for name, part in document["parts"].items():
        lines += [f"### {name}", "", _ran_on(part), ""]
        for table in part["tables"]:
            columns, cells = _cells(Table(**table))
            lines += [table["title"], ""]
            lines += ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *cells)]
            lines += [""]
    return "\n".join(lines)


def _ran_on(part):
    context, options = part["context"], part["options"]
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items())
    machine = f"{context['processor']}, {context['cores']} cores, {context['threads']} threads"
    # a machine with a GPU can measure its CPU, too
    return (
        f"{context['gpu'] if options['device'] == 'cuda' else machine}; {options['dtype']}"
        f"{', channels last' if options['channels_last'] else ''}; {versions}; "
        f"commit {context['commit'][:8]}; {context['date'][:10]}; {part['seconds']:.0f} s."
    )


def _cells(table):
    columns = list(dict.fromkeys(column for row in table.rows for column in row))
    return columns, [[_format(row.get(column)) for column in columns] for row in table.rows]


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


def read_results(path):
    """What a results file holds, or an empty document where there is none.

    Raises:
        ValueError: the file is something else.
    """
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
    """Put a part into a results file, in place of an earlier one; the other parts stay as they are.

    The file is replaced as a whole, so that an interruption leaves the old one.

    Args:
        path (str or Path): the json file; its folder is made if needed.
        name (str): of the part.
        tables (list[Table]): its results.
        context (dict): as of `describe_run`.
        options (Options): its settings.
        seconds (float): how long the part took.

    Raises:
        ValueError: the file exists and holds something else.
    """
    path = Path(path)
    document = read_results(path)
    part = {"context": context, "options": asdict(options), "seconds": seconds}
    document["parts"][name] = {**part, "tables": [asdict(table) for table in tables]}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=path.name, suffix=".unfinished", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
