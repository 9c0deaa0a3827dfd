"""Bar charts as SVG: text as text, readable on light and on dark pages.

Owns the drawing. Refuses to flatter: zero is on every axis, and the whole range of the rounds is
drawn over each bar.
"""

from html import escape

from figures import DIRECT, Figure, cells
from tables import MARKED, number, order, spread

WIDTH, LEFT, RIGHT = 760, 100, 150
BAR, GAP, GROUP_GAP, TOP, BOTTOM = 16, 4, 14, 74, 34
LEGEND_STEP = 175

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-size: 16px; font-weight: 600; }
  .quiet { fill: #57606a; font-size: 12px; }
  .grid { stroke: #d0d7de; }
  .range { stroke: #24292f; stroke-width: 1.5; }
  .s0 { fill: #0969da; } .s1 { fill: #6aa8ee; } .s2 { fill: #b6d4f7; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .quiet { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .range { stroke: #e6edf3; }
    .s0 { fill: #388bfd; } .s1 { fill: #1f5fb8; } .s2 { fill: #173f77; }
  }
"""

# File, title, kind of work, figure.
CHARTS = [
    ("memory.svg", "User memory per idle stream, kB", "memory", "rss"),
    ("cpu.svg", "CPU time per chunk, µs", "cpu", "cpu_total"),
    ("added.svg", "Added to the p99 delay of an event, µs", "cpu", "added_p99"),
]


def step_of(span):
    """A round step that divides a span into three to seven parts."""
    magnitude = 1.0
    while magnitude * 10 <= span:
        magnitude *= 10
    while magnitude > span:
        magnitude /= 10
    for factor in (1, 2, 5, 10):
        step = magnitude * factor / 5
        if span / step <= 7:
            return step
    return magnitude * 2


def ticks(low, high):
    """Axis marks from at most `low` to at least `high`, zero among them."""
    low, high = min(low, 0), max(high, 0)
    step = step_of((high - low) or 1)
    first, last = 0, 0
    while first * step > low:
        first -= 1
    while last * step < high:
        last += 1
    return [n * step for n in range(first, last + 1)]


def plain(value):
    return f"{value:,.10g}".replace("-", "−")


def label(cell, figure):
    return number(cell.median, figure) + spread(cell, figure) + (f" {MARKED}" if cell.marks else "")


def bars(title, names, series):
    """A chart: for each name a bar of each series, a series being (text, figure, {name: cell})."""
    ends = [edge * figure.scale for _, figure, row in series for cell in row.values()
            for edge in (cell.low, cell.high)]
    marks = ticks(min(ends), max(ends))
    span = marks[-1] - marks[0] or 1

    def x(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - marks[0]) / span

    group = len(series) * (BAR + GAP) + GROUP_GAP
    height = TOP + len(names) * group + BOTTOM
    base = height - BOTTOM
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
           f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>",
           f'<text class="title" x="8" y="24">{escape(title)}</text>']
    for n, (text, _, _) in enumerate(series):
        left = LEFT + n * LEGEND_STEP
        out.append(f'<rect class="s{n % 3}" x="{left}" y="40" width="12" height="12"/>')
        out.append(f'<text class="quiet" x="{left + 18}" y="51">{escape(text)}</text>')
    for mark in marks:
        out.append(f'<line class="grid" x1="{x(mark):.1f}" y1="{TOP - 8}" x2="{x(mark):.1f}" '
                   f'y2="{base}"/>')
        out.append(f'<text class="quiet" x="{x(mark):.1f}" y="{base + 16}" '
                   f'text-anchor="middle">{plain(mark)}</text>')
    for place, name in enumerate(names):
        top = TOP + place * group
        middle = top + (group - GROUP_GAP) / 2 + 3
        out.append(f'<text x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        for n, (_, figure, row) in enumerate(series):
            if name in row:
                out += bar(row[name], figure, n, top + n * (BAR + GAP), x)
    if any(cell.marks for _, _, row in series for cell in row.values()):
        out.append(f'<text class="quiet" x="{WIDTH - 8}" y="24" text-anchor="end">'
                   f'{MARKED} with marked runs: see the table</text>')
    return "\n".join([*out, "</svg>", ""])


def bar(cell, figure, n, top, x):
    """One bar, the range of its rounds and its figures."""
    median, low, high = (one * figure.scale for one in (cell.median, cell.low, cell.high))
    left, right = sorted((x(0), x(median)))
    middle = top + BAR / 2
    yield (f'<rect class="s{n % 3}" x="{left:.1f}" y="{top}" width="{right - left:.1f}" '
           f'height="{BAR}"/>')
    if low != high:
        yield (f'<path class="range" fill="none" d="M{x(low):.1f} {middle - 4}v8M{x(low):.1f} '
               f'{middle}H{x(high):.1f}M{x(high):.1f} {middle - 4}v8"/>')
    yield (f'<text class="quiet" x="{max(x(high), right) + 6:.1f}" y="{middle + 4}">'
           f'{escape(label(cell, figure))}</text>')


def charts(report):
    """{file name: SVG} of what the report holds figures for."""
    found, result = cells(report), {}
    names = [name for name in order(report) if name != DIRECT]
    for file, title, kind, key in CHARTS:
        series = []
        for work in report["works"]:
            row = {name: cell for name, cell in found[work["name"]].get(key, {}).items()
                   if cell.values} if work["kind"] == kind else {}
            if row:
                figure = next(Figure.read(one) for one in work["figures"] if one["key"] == key)
                series.append((work["title"], figure, row))
        if series:
            result[file] = bars(title, names, series)
    return result
