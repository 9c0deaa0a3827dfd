"""What the project requires of itself, and whether a report meets it.

Owns the one table of bars and the verdicts. A bar is a requirement, never a measured figure: it is
set here by hand and a run does not change it. Refuses a verdict on what was not shown: a figure
from marked runs only, or one that is to be held against somebody who was absent.
"""

from dataclasses import dataclass, replace
from typing import Optional

from figures import Cell, Figure, cells
from tables import MARKED, notes, number, spread

SUBJECT = "tidegate"
# The same with a key, and every limit on requests in force.
LIMITED = "tidegate-limited"
UNMEASURED = "not shown: not measured"


@dataclass(frozen=True)
class Bar:
    """At most so much, or at most so many times the least of others' medians in the same run."""
    benchmark: str
    work: str
    figure: str
    most: float                    # in the unit in which the figure is written, or a factor
    of: tuple = ()                 # the others; none: `most` is the bar itself
    subject: str = SUBJECT         # whose figure it is


PLAIN = (
    Bar("price", "idle-h1", "rss", 2.0),
    Bar("price", "idle-h1", "rss", 1.0, ("haproxy",)),
    Bar("price", "idle-h2-tls", "rss", 3.0),
    Bar("price", "idle-tls-h2-tls", "rss", 11.0),
    Bar("price", "idle-h2-h2", "rss", 4.0),
    Bar("price", "idle-h2-h2", "total", 400.0),
    Bar("price", "after", "kept", 1.5),
    Bar("price", "bodies", "added", 1.0),
    Bar("price", "many", "growth_ratio", 1.15),

    Bar("compare", "cpu-2000x20", "cpu_total", 1.25, ("raw-relay",)),
    Bar("compare", "cpu-2000x20", "cpu_total", 1.05, ("nginx", "haproxy")),
    Bar("compare", "cpu-2000x20", "added_p99", 1.15, ("nginx", "haproxy")),
    Bar("compare", "cpu-1000x10", "added_p99", 1.15, ("nginx", "haproxy")),
    Bar("compare", "short", "cpu", 1.6, ("nginx",)),
)
# Limits may not cost what the rest has saved: each bar holds with them as well.
BARS = PLAIN + tuple(replace(bar, subject=LIMITED) for bar in PLAIN)


@dataclass(frozen=True)
class Verdict:
    """A bar, what was found, and how the two compare."""
    bar: Bar
    title: str
    figure: Optional[Figure]       # None: not in the report
    allowed: Optional[float]       # as written; None where there is nothing to hold against
    row: dict                      # {contestant: Cell}
    text: str                      # "met", "missed by N %" or "not shown: why"

    @property
    def own(self) -> Optional[Cell]:
        return self.row.get(self.bar.subject)

    def described(self):
        """For the report."""
        return {"work": self.bar.work, "figure": self.bar.figure,
                "subject": self.bar.subject, "most": self.bar.most,
                "of": list(self.bar.of), "allowed": self.allowed, "verdict": self.text}


def percent(excess):
    """How much too much; small ones are not rounded away."""
    return f"{excess * 100:.0f}" if excess >= 0.1 else f"{max(excess * 100, 0.1):.1f}"


def why_not_shown(name, cell):
    """Why a contestant's cell supports no verdict; None if it does."""
    if cell is None:
        return f"{name} took no part"
    if cell.doubtful:
        return f"{name}: " + "; ".join(cell.marks)
    if not cell.values:
        return f"{name}: no value"
    return None


def allowed_by(bar, figure, row):
    """What the bar allows, and why it cannot be told (one of the two)."""
    if not bar.of:
        return bar.most, None
    for name in bar.of:
        if reason := why_not_shown(name, row.get(name)):
            return None, reason
    least = min((row[name].median, name) for name in bar.of)
    if least[0] <= 0:
        # A multiple of nothing, or of less, is no bar.
        return None, f"{least[1]}: {number(least[0], figure)} is nothing to compare with"
    return bar.most * least[0] * figure.scale, None


def judge(bar, title, figure, row):
    """The verdict on one bar; `row` holds everyone's cells of the figure."""
    allowed, reason = allowed_by(bar, figure, row)
    own = row.get(bar.subject)
    reason = why_not_shown(bar.subject, own) or reason
    if reason:
        return Verdict(bar, title, figure, allowed, row, f"not shown: {reason}")
    found = own.median * figure.scale
    met = found <= allowed
    text = "met" if met else f"missed by {percent(found / allowed - 1)} %"
    return Verdict(bar, title, figure, allowed, row, text)


def verdicts(report):
    """The verdicts on all bars of the report's benchmark, in the order of the table above."""
    found, works = cells(report), {one["name"]: one for one in report["works"]}
    for bar in BARS:
        if bar.benchmark != report["benchmark"]:
            continue
        work = works.get(bar.work)
        if work is None:
            yield Verdict(bar, f"{bar.work}: {bar.figure}", None, None, {}, UNMEASURED)
            continue
        figure = next(Figure.read(one) for one in work["figures"] if one["key"] == bar.figure)
        limits = " (every limit on)" if bar.subject == LIMITED else ""
        title = f"{work['title']}: {figure.title}{limits}"
        yield judge(bar, title, figure, found[bar.work][bar.figure])


def bar_text(verdict):
    """The bar as it is written: its multiple, and what that comes to."""
    bar, figure = verdict.bar, verdict.figure
    if not bar.of:
        # As many digits as were meant.
        return f"≤ {bar.most:g}"
    who = bar.of[0] if len(bar.of) == 1 else "the better of " + " and ".join(bar.of)
    text = f"≤ {bar.most:g} × {who}"
    if verdict.allowed is None:
        return text
    return f"{text} = {verdict.allowed:,.{figure.digits}f}"


def beside(verdict):
    """What others took for the same."""
    return ", ".join(f"{name} {number(cell.median, verdict.figure)}{MARKED * cell.doubtful}"
                     for name, cell in verdict.row.items()
                     if name not in (SUBJECT, LIMITED) and cell.values)


def range_text(cell, figure):
    return spread(cell, figure).strip(" ()") or number(cell.median, figure)


def line(verdict, others):
    """One line of the table."""
    own, figure = verdict.own, verdict.figure
    measured = own is not None and bool(own.values)
    row = [verdict.title, bar_text(verdict),
           number(own.median, figure) + f" {MARKED}" * bool(own.marks) if measured else "–",
           range_text(own, figure) if measured else "–",
           f"**{verdict.text}**" if verdict.text.startswith("missed") else verdict.text]
    if others:
        row.append(beside(verdict) if figure else "")
    return "| " + " | ".join(row) + " |"


def remarks(work, found):
    """Why cells are marked."""
    marks = {}
    for verdict in found:
        for name, cell in verdict.row.items():
            for mark in cell.marks:
                # A derived figure carries the marks of the other too, who tells of them itself.
                if mark.partition(": ")[0] not in verdict.row:
                    marks.setdefault(mark, {})[name] = cell
    return notes(work, marks)


def table(report, others=False):
    """The bars with what was found, in Markdown.

    With `others`, also what the others took and why runs are marked, for pages that have no table
    of everything.
    """
    found = list(verdicts(report))
    lines = ["| | bar | median | range | |" + " others |" * others,
             "|---|---|---|---|---|" + "---|" * others, *(line(one, others) for one in found)]
    told = [remark for work in report["works"] if others
            for remark in remarks(work, [one for one in found if one.bar.work == work["name"]])]
    return "\n".join(lines) + ("\n\n" + "  \n".join(told) if told else "")
