"""The report's tables with our figures beside them, and the list of trained models."""

import statistics

from ..files import write_atomically
from .arm import SCALES, Run
from .arms import ARMS
from .report_values import TABLES

BEGIN, END = "<!-- reproduction -->", "<!-- /reproduction -->"
WHERE_FIGURES = "docs/figures"


def write_tables(root, records):
    """Write the part of results/README.md between the two marks; the rest of the file stays.

    Args:
        root (Path): the repository.
        records (dict): scale -> arm -> list of records, as of :func:`.records.read_records`.

    Returns:
        Path: the file.

    Raises:
        ValueError: the file has one mark without the other, or in the wrong order.
    """
    path = root / "results" / "README.md"
    text = path.read_text() if path.is_file() else "# Measured results\n"
    write_atomically(path, with_part(text, tables_text(root, records), path.name))
    return path


def with_part(text, part, name):
    """A text with the part between the marks exchanged; without marks it comes below the first heading."""
    count = text.count(BEGIN), text.count(END)
    block = f"{BEGIN}\n\n{part.strip()}\n\n{END}"
    if count == (0, 0):
        heading, _, rest = text.partition("\n")
        return f"{heading}\n\n{block}\n\n{rest.lstrip()}"
    if count != (1, 1) or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{name} must hold {BEGIN} and, after it, {END}, each once, or neither")
    before, rest = text.split(BEGIN)
    return before + block + rest.split(END)[1]


def tables_text(root, records):
    """str: all tables, in markdown."""
    lines = [
        "The tables below are written by `python tools/reproduce.py`; "
        "[docs/reproduction.md](../docs/reproduction.md) says what was chosen and why. *report*: as the "
        "project report gives it. *full*: the report's size and schedule. *medium* and *small*: what two CPU "
        "cores train in little more than an hour and in less than one, which shows how the networks begin "
        "to learn, not how good they get. n = 1 where no spread is given; else mean ± standard deviation of "
        "n seeds.",
        "",
    ]
    lines += [line for scale in SCALES if (line := provenance(scale, records.get(scale, {})))]
    for table in TABLES:
        lines += ["", f"### {table.title}", "", *table_lines(table, records), *pictures(root, table)]
    return "\n".join(lines)


def provenance(scale, by_arm):
    """str: where and with what the runs of a scale were made; "" without any."""
    found = [record for group in by_arm.values() for record in group]
    if not found:
        return ""

    def all_of(get):
        return ", ".join(sorted({str(get(record)) for record in found}))

    commits = sorted({commit for record in found for commit in record["commits"]})
    changed = " with uncommitted changes in some" if any(r["uncommitted_changes"] for r in found) else ""
    versions = ", ".join(
        f"{name} {all_of(lambda r, n=name: r['versions'][n])}" for name in found[0]["versions"]
    )
    hours = sum(record["wall_seconds"] for record in found) / 3600
    return (
        f"- *{scale}*: {len(found)} runs, {hours:.1f} hours in all, {all_of(lambda r: r['date'])}; "
        f"{all_of(where)}; commit {', '.join(commits)}{changed}; {versions}."
    )


def where(record):
    """str: the machine of a record in words."""
    machine = record["hardware"]
    threads = " or ".join(map(str, machine["threads"]))
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {threads} thread{'' if threads == '1' else 's'} a run"
    return f"{machine['gpu']} ({cpu})" if machine["gpu"] else f"{cpu}, no GPU"


def table_lines(table, records):
    """list[str]: a table in markdown, with what is missing and in what the protocols differ."""
    arms = [arm for arm in ARMS if arm.table == table.arms]
    scales = [scale for scale in SCALES if any(records_of(arm, scale, records) for arm in arms)]
    in_report = any(arm.name in table.report for arm in arms)
    columns = [
        (metric, source)
        for metric in table.metrics
        for source in [*(["report"] if in_report else []), *scales]
        if _has_values(table, arms, records, metric, source)
    ]
    lines = []
    if columns:
        lines += [
            _row(["", *(f"{metric.heading}: {source}" for metric, source in columns)]),
            _row(["---"] * (len(columns) + 1)),
        ]
        for arm in arms:
            cells = [cell(table, arm, records, metric, source) for metric, source in columns]
            if any(cells):
                lines.append(_row([arm.label, *(text or "-" for text in cells)]))
        lines.append("")
    if table.curve is not None:  # else the same stands below another table of these arms
        lines += setups(arms, scales, records)
        lines += [f"- {line}" for line in missing_lines(arms, records)]
    if table.differences:
        lines.append(f"- Protocol: {table.differences}")
    return lines


def cell(table, arm, records, metric, source):
    """str: a figure of the report or the mean of our runs; "" for none."""
    if source == "report":
        values = dict(zip(table.metrics, table.report.get(arm.name, ()), strict=False))
        return values.get(metric, "")
    found = records_of(arm, source, records)
    diverged = [record["diverged_at"] for record in found if record["diverged_at"] is not None]
    values = [v for record in found if (v := value_of(record, metric)) is not None]
    if diverged:
        seeds = "" if len(found) == 1 else f" in {len(diverged)} of {len(found)} seeds"
        return f"diverged at iteration {', '.join(map(str, diverged))}{seeds}"
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{metric.digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{metric.digits}f} (n={len(values)})"


def records_of(arm, scale, records):
    """list[dict]: the records of an arm, or of the one whose result it shares at full scale."""
    name = arm.same_as if arm.same_as and scale == "full" else arm.name
    return records.get(scale, {}).get(name, [])


def value_of(record, metric):
    """float or None: a metric of a run at its end."""
    if metric.last > 1:
        points = record["evaluations"].get(metric.dataset, [])[-metric.last :]
        values = [point["metrics"][metric.name] for point in points]
        return statistics.mean(values) if values and record["diverged_at"] is None else None
    if metric.dataset:
        return record["final"].get(metric.dataset, {}).get(metric.name)
    if not record["curve"] or record["diverged_at"] is not None:
        return None
    return task_loss(record["curve"][-1])


def task_loss(point):
    """float: the losses of a point of a curve, added up, but for the orthogonality penalty.

    Detectron2 names the losses only where there are several; a single one is in the total alone.
    """
    named = [value for key, value in point.items() if key.startswith("loss_") and key != "loss_ortho"]
    return sum(named) if named else point["total_loss"]


def setups(arms, scales, records):
    """list[str]: size and schedule at each scale, as the runs had them."""
    lines = []
    for scale in scales:
        found = {}
        for arm in arms:
            for record in records_of(arm, scale, records):
                start = record["starts_from"] and f" from {record['starts_from']}"
                found.setdefault(record["setup"], set()).add(record["net"] + start)
        for setup, nets in found.items():
            lines.append(f"- {scale.capitalize()}: {', '.join(sorted(nets))}: {setup}.")
    return lines


def missing_lines(arms, records):
    """list[str]: which arms have no result at a scale, and why."""
    lines = []
    for scale in SCALES:
        reasons = {}
        for arm in arms:
            run = getattr(arm, scale)
            if not records_of(arm, scale, records) and not (arm.same_as and scale == "full"):
                reason = "no result yet" if isinstance(run, Run) else run
                reasons.setdefault(reason, []).append(arm.label)
        for reason, names in reasons.items():
            lines.append(f"Missing at {scale} scale ({reason}): {'; '.join(names)}.")
    return lines


def pictures(root, table):
    """list[str]: the figures that there are of a table's runs."""
    if table.curve is None:
        return []
    names = [f"reproduction_{kind}{table.arms}_{scale}.png" for scale in SCALES for kind in ("", "samples_")]
    return [
        f"\n![{table.title}](../{WHERE_FIGURES}/{name})"
        for name in names
        if (root / WHERE_FIGURES / name).is_file()
    ]


def _has_values(table, arms, records, metric, source):
    if source == "report":
        return any(cell(table, arm, records, metric, source) for arm in arms)
    found = [record for arm in arms for record in records_of(arm, source, records)]
    return any(value_of(record, metric) is not None for record in found)


def _row(cells):
    return f"| {' | '.join(cells)} |"
