"""Charts as inline SVG: axes, ticks and curves are in the file; the page's script only adds what hovers."""

import json
import math
from html import escape
from typing import NamedTuple

# In the units of the drawing, which are pixels on a screen that is not much wider
WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 22, 34
# Points of a curve; of more, the smallest and the largest of each of half as many parts are drawn
POINTS = 240
# The least singular value with a place on a chart
LEAST = 1e-3
# Colours of curves in the style sheet; more curves take them again with other dashes
COLOURS = 7
# A logarithmic axis from this ratio of the largest to the smallest value on, and up to this one
LOGARITHMIC, DECADES = 50, 1e6


class Chart(NamedTuple):
    """A drawn chart: ``svg``; ``legend``, (colour, label, last value) each; ``data`` for the page's script;
    ``note``, what else a reader must know."""

    title: str
    svg: str
    legend: list
    data: str
    note: str


def number(value):
    """str: a number in as few characters as tell it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    if value == 0 or 1e-3 <= size < 1e5:
        text = f"{value:,.0f}" if size >= 1000 else f"{value:.4g}" if size >= 100 else f"{value:.3g}"
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return text.replace("-", "−")


def line_chart(title, series, unit, logarithmic=None, note=""):
    """Draw curves over iterations.

    Args:
        title, unit (str): above the chart, and above its vertical axis.
        series (dict[str, dict[int, float]]): label -> iteration -> value. Curves are interrupted where a
            value is not finite; a triangle at the top shows where.
        logarithmic (bool or None): the vertical axis; None: if all values are positive and far apart.
        note (str): stands below.

    Returns:
        Chart or None: None where no value is finite.
    """
    finite = [v for values in series.values() for v in values.values() if math.isfinite(v)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    if logarithmic is None:
        logarithmic = low > 0 and high > LOGARITHMIC * low
    if logarithmic and high > DECADES * low:
        low = high / DECADES
        note = f"Values below {number(low)} are drawn there. {note}".strip()
    y_ticks = _log_ticks(low, high) if logarithmic else _ticks(0 if 0 <= low < high / 2 else low, high, 4)
    steps = [step for values in series.values() for step in values]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    first = 0 if first < last / 3 else first
    x_ticks = [tick for tick in _ticks(first, last, 4) if first <= tick <= last and tick == int(tick)]

    def y_scale(value):
        low, high, value = (
            math.log(max(v, y_ticks[0])) if logarithmic else v for v in (y_ticks[0], y_ticks[-1], value)
        )
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    def x_scale(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)

    parts = [f'<text class="unit" x="2" y="11">{escape(unit)}{" (log)" * logarithmic}</text>']
    for tick in y_ticks:
        y = y_scale(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">{number(tick)}</text>')
    floor = HEIGHT - BOTTOM
    for tick in x_ticks:
        x = x_scale(tick)
        anchor = "end" if x > WIDTH - 26 else "middle"
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
        text = f"{tick:,.0f}" if tick < 10000 else f"{tick / 1000:,g}k"
        parts.append(
            f'<text class="x" style="text-anchor:{anchor}" x="{x:.1f}" y="{floor + 16}">{text}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="x" x="{middle}" y="{HEIGHT - 3}">iteration</text>')

    legend, data, broken = [], [], []
    for i, (label, values) in enumerate(series.items()):
        colour = f"c{i % COLOURS} d{i // COLOURS % 4}"
        points = thinned(list(values.items()))
        parts += _curve(points, x_scale, y_scale, colour)
        lost = [step for step, value in values.items() if not math.isfinite(value)]
        broken += lost
        parts += [
            f'<path class="lost {colour}" d="M{x_scale(s):.1f} {TOP + 7}l-4 -7h8z"/>'
            for s, v in points
            if not math.isfinite(v)
        ]
        final = list(values.values())[-1]
        legend.append((colour, label, number(final)))
        data.append([[step, number(value)] for step, value in points])
    if broken:
        lost = f"{len(broken)} values are not finite (▼), the first at iteration {min(broken):,}."
        note = f"{lost} {note}".strip()
    summary = ", ".join(f"{label} {final}" for _, label, final in legend)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(f"{title}, last values: {summary}")}">{"".join(parts)}'
        f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{floor}" visibility="hidden"/></svg>'
    )
    scale = {"first": first, "last": last, "left": LEFT, "right": WIDTH - RIGHT, "width": WIDTH}
    return Chart(title, svg, legend, json.dumps({**scale, "series": data}), note)


def _curve(points, x_scale, y_scale, colour):
    """SVG of a curve: unbroken runs of points as lines, single points and few points as dots."""
    runs = [[]]
    for step, value in points:
        if math.isfinite(value):
            runs[-1].append((x_scale(step), y_scale(value)))
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    found = []
    for run in runs:
        if len(run) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
            found.append(f'<path class="curve {colour}" d="M{path}"/>')
        if len(run) == 1 or len(points) <= 12:
            found += [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in run]
    return found


def thinned(points, limit=POINTS):
    """At most `limit` of the points (iteration, value): of each part the extremes, and all first losses.

    A part with values that are not finite keeps the first of them.
    """
    if len(points) <= limit:
        return points
    kept = {0, len(points) - 1}
    parts = limit // 2 - 1
    for part in range(parts):
        indices = range(part * len(points) // parts, (part + 1) * len(points) // parts)
        finite = [i for i in indices if math.isfinite(points[i][1])]
        if len(finite) < len(indices):
            kept.add(next(i for i in indices if not math.isfinite(points[i][1])))
            finite = finite[:1]
        if finite:
            kept |= {f(finite, key=lambda i: points[i][1]) for f in (min, max)}
    return [points[i] for i in sorted(kept)]


def _ticks(low, high, wanted):
    """Round numbers from at most `low` to at least `high`, about as many as wanted."""
    if high <= low:
        low, high = low - abs(low) / 2 - (low == 0), high + abs(high) / 2 + (high == 0)
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def _log_ticks(low, high):
    """Powers of ten from at most `low` to at least `high`, every second and so on if there are many."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = -(-(last - first) // 5) or 1
    return [10.0**i for i in range(first, last + step, step)]


def layer_chart(title, layers):
    """Draw the range of singular values of each layer, before and after the training.

    Args:
        title (str): above the chart.
        layers (dict[str, dict]): name -> ``before`` and ``after``, each with ``min`` and ``max``.

    Returns:
        Chart or None: None where no value is finite.
    """
    shown = {
        name: [layer[when] for when in ("before", "after")]
        for name, layer in layers.items()
        if all(math.isfinite(layer[w].get(s, math.nan)) for w in ("before", "after") for s in ("min", "max"))
    }
    if not shown:
        return None
    ends = [value for pair in shown.values() for when in pair for value in (when["min"], when["max"])]
    low, high = max(min(ends), LEAST), max(*ends, 1.0)
    low = min(low, 0.999)
    if high / low < 10:
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if low / 2.6 < t < high * 2.6]
    else:
        ticks = _log_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    left, row, top = 14 + 5.6 * min(24, max(map(len, shown))), 17, 20
    height = top + row * len(shown) + 30

    def x_scale(value):
        share = (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
        return left + (WIDTH - left - 16) * share

    bottom = height - 30
    parts = []
    for tick in ticks:
        x = x_scale(tick)
        kind = "one" if tick == 1 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom}"/>')
        parts.append(f'<text class="x" x="{x:.1f}" y="{bottom + 13}">{number(tick)}</text>')
    middle = (left + WIDTH - 16) / 2
    parts.append(f'<text class="x" x="{middle:.1f}" y="{height - 3}">singular value (log)</text>')
    for i, (name, pair) in enumerate(shown.items()):
        y = top + row * i + row / 2
        text = name if len(name) <= 24 else f"…{name[-23:]}"
        parts.append(f'<text class="layer" x="{left - 8:.1f}" y="{y + 3.5:.1f}">{escape(text)}</text>')
        for when, shift, found in zip(("before", "after"), (-3, 3), pair, strict=True):
            x1, x2 = x_scale(found["min"]) - 3, x_scale(found["max"]) + 3
            title_of = f"{name} {when}: {number(found['min'])} to {number(found['max'])}"
            place = f'x="{x1:.1f}" width="{x2 - x1:.1f}" y="{y + shift - 2.5:.1f}" height="5" rx="2.5"'
            parts.append(f'<rect class="{when}" {place}><title>{escape(title_of)}</title></rect>')
    label = f"{title}: range of singular values of {len(shown)} layers before and after"
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
    legend = [("before", "before the training", ""), ("after", "after", "")]
    note = f"Values below {LEAST} are drawn there." if min(ends) < LEAST else ""
    return Chart(title, svg, legend, "", note)
