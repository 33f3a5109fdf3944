"""What is made of the records: verdicts, the report's tables with our figures beside them, and figures."""

from tabulate import tabulate

from iso_d2.files import write_atomically

from .experiment import SCALES, TABLES
from .figures import WHERE_FIGURES, write_figures
from .record import mean_text, read_records, records_of, value_of
from .verdicts import RULE, verdict_table

# What the tool writes stands between a start and an end; the rest of the file is written by hand.
RESULTS, VERDICTS = "reproduction", "verdicts"

INTRODUCTION = (
    "Written by `python tools/reproduce.py`; [docs/reproduction.md](../docs/reproduction.md) says what was "
    "chosen and why. *report*: as the project report gives it. *full*: the report's size and schedule. "
    "*cpu*: small networks, 10 minutes to some hours a run on one core. n = 1 where no spread is given; else "
    "mean ± standard deviation of n seeds or folds. The record of each run, in `reproduction/SCALE/`, has "
    "its command, commit, versions, hardware and learning curve. `python tools/reproduce.py all --list` says "
    "what has not been run."
)


def write_report(root):
    """Write docs/figures/, the tables in results/README.md and, if it has the marks, README.md's verdicts.

    Returns what was written, and which figures could not be and why. Marks that do not fit are a ValueError.
    """
    records = {scale: read_records(root, scale) for scale in SCALES}
    # First, since the tables show those figures that there are
    written, notes = write_figures(root, records)
    path, front = root / "results" / "README.md", root / "README.md"
    text = path.read_text() if path.is_file() else "\n".join(["# Measured results\n", *_marks(RESULTS), ""])
    changes = [(path, text, RESULTS, results_text(root, records))]
    if front.is_file() and _marks(VERDICTS)[0] in (text := front.read_text()):
        changes.append((front, text, VERDICTS, verdict_table(records, short=True)))
    for path, text, name, part in changes:
        write_atomically(path, with_part(text, name, part, path.name))
        written.append(path)
    return "\n".join([*(f"written: {path.relative_to(root)}" for path in written), *notes])


def _marks(name):
    return f"<!-- {name}: start -->", f"<!-- {name}: end -->"


def with_part(text, name, part, where):
    """str: the text of a file with the part between the marks of a name, RESULTS or VERDICTS, exchanged.

    A ValueError, which says `where`, if the marks are not there, each once and in order.
    """
    begin, end = _marks(name)
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise ValueError(f"{where} must hold {begin} and, after it, {end}, each once")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{part.strip()}\n\n{end}{rest.split(end)[1]}"


def results_text(root, records):
    """str: the verdicts, and every table that holds a measurement, in markdown."""
    lines = ["## Do the report's claims hold?", "", verdict_table(records), "", RULE, ""]
    lines += ["## The runs", "", INTRODUCTION, ""]
    lines += [line for scale in SCALES if (line := origin(scale, records.get(scale, {})))]
    for table in TABLES:
        if rows := table_lines(table, records):
            lines += ["", f"### {table.title}", "", *rows, *pictures(root, table)]
    return "\n".join(lines)


def origin(scale, by_experiment):
    """str: where and with what the runs of a scale were made; "" without any."""
    found = [record for group in by_experiment.values() for record in group]
    if not found:
        return ""

    def all_of(get):
        return ", ".join(sorted({str(get(record)) for record in found}))

    commits = sorted({commit for record in found for commit in record["commits"]})
    changed = " with uncommitted changes in some" if any(r["uncommitted_changes"] for r in found) else ""
    versions = ", ".join(
        f"{name} {all_of(lambda r, n=name: r['versions'].get(n, '-'))}" for name in found[0]["versions"]
    )
    hours = sum(record["wall_seconds"] for record in found) / 3600
    return (
        f"- *{scale}*: {len(found)} runs, {hours:.1f} hours in all, {all_of(lambda r: r['date'])}; "
        f"{all_of(machine)}; commit {', '.join(commits)}{changed}; {versions}."
    )


def machine(record):
    """str: the machine of a record in words."""
    hardware = record["hardware"]
    threads = " or ".join(map(str, hardware["threads"]))
    cores = f"{hardware['cpu']}, {hardware['cores']} cores"
    cpu = f"{cores}, {threads} thread{'' if threads == '1' else 's'} a run"
    return f"{hardware['gpu']} ({cpu})" if hardware["gpu"] else f"{cpu}, no GPU"


def table_lines(table, records):
    """list[str]: a table in markdown, with schedules and protocol; empty if nothing has been measured."""
    scales = [scale for scale in SCALES if any(records_of(one, scale, records) for one in table.experiments)]
    if not scales or not table.metrics:
        return []
    in_report = any(experiment.report for experiment in table.experiments)
    sources = [*(["report"] if in_report else []), *scales]
    lines = []
    for part in dict.fromkeys(metric.part for metric in table.metrics):
        columns = {"": [experiment.label for experiment in table.experiments]}
        for metric in (metric for metric in table.metrics if metric.part == part):
            for source in sources:
                texts = [cell(table, experiment, records, metric, source) for experiment in table.experiments]
                if any(text and not text.startswith("diverged") for text in texts):
                    columns[f"{metric.heading}: {source}"] = texts
        rows = [row for row in zip(*columns.values(), strict=True) if any(row[1:])]
        rows = [[text or "-" for text in row] for row in rows]
        lines += [f"{part[0].upper()}{part[1:]}:", ""] if part else []
        lines += [*tabulate(rows, list(columns), tablefmt="github", disable_numparse=True).splitlines(), ""]
    lines += setups(table, scales, records)
    return [*lines, f"- Protocol: {table.protocol}"] if table.protocol else lines


def cell(table, experiment, records, metric, source):
    """str: a figure of the report or the mean of our runs; "" for none."""
    if source == "report":
        return dict(zip(table.metrics, experiment.report, strict=False)).get(metric, "")
    found = records_of(experiment, source, records)
    diverged = [record["diverged_at"] for record in found if record["diverged_at"] is not None]
    if diverged:
        seeds = "" if len(found) == 1 else f" in {len(diverged)} of {len(found)} seeds"
        return f"diverged at iteration {', '.join(map(str, diverged))}{seeds}"
    values = [value for record in found if (value := value_of(record, metric)) is not None]
    if not values:
        return ""
    return mean_text(values, metric) + (f" (n={len(values)})" if len(values) > 1 else "")


def setups(table, scales, records):
    """list[str]: size and schedule at each scale, as the runs had them."""
    lines = []
    for scale in scales:
        found = {}
        for experiment in table.experiments:
            for record in records_of(experiment, scale, records):
                start = record["starts_from"] and f", from {record['starts_from']}"
                found.setdefault(record["setup"] + start, []).append(experiment.label)
        for setup, labels in found.items():
            which = "" if len(found) == 1 else f" ({'; '.join(dict.fromkeys(labels))})"
            lines.append(f"- {scale}{which}: {setup}.")
    return lines


def pictures(root, table):
    """list[str]: the figures that there are of a table's runs."""
    kinds = ("", "samples_", "isometry_")
    names = [f"reproduction_{kind}{table.name}_{scale}.png" for scale in SCALES for kind in kinds]
    return [
        f"\n![{table.title}](../{WHERE_FIGURES}/{name})"
        for name in names
        if (root / WHERE_FIGURES / name).is_file()
    ]
