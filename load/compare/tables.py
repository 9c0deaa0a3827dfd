"""The tables of a report, in Markdown.

Owns how a cell is written. Refuses to prefer anyone: the best value of a row is bold, whoever it
belongs to. The floor and the direct run take no part in that, since they do less, nor do values
from marked rounds only.
"""

import statistics

from figures import DIRECT, FLOOR, Figure, cells

MARKED = "†"
# What the words of the tools mean, for the notes.
REASONS = {
    "coalesced": "more than 1 % of the chunks shared a read with another of their stream",
    "rate": "less than 97 % of the offered rate arrived",
    "late": "half of the events took longer than half of the interval",
    "tool_busy": "the load tool was near the limit of its thread",
    "failures": "not every stream could be opened",
    "unsettled": "streams were still opening when the window began",
    "sequence": "events were lost, repeated, reordered or malformed",
    "fewer_streams": "open files ran out",
    "ended_early": "all streams ended before the time was over",
    "clock": "stamps lay in the future",
    "fewer_live": "streams ended before they should",
    "ends": "streams ended otherwise than by their end or the client",
}


def number(value, figure):
    return f"{value * figure.scale:,.{figure.digits}f}".replace("-", "−")


def spread(cell, figure):
    """The range of the rounds, as written after a median."""
    low, high = number(cell.low, figure), number(cell.high, figure)
    return "" if low == high else f" ({low} to {high})" if cell.low < 0 else f" ({low}–{high})"


def words(counter, alone):
    """Outcomes with how often they came; without it if there was but one."""
    if len(counter) == 1 and alone:
        return next(iter(counter))
    return ", ".join(f"{word} ({count} of {counter.total()})"
                     for word, count in counter.most_common())


def written(cell, figure, best):
    """One cell of a table."""
    parts = []
    if cell.values:
        median = number(cell.median, figure)
        parts.append((f"**{median}**" if median == best else median) + spread(cell, figure))
    if cell.words:
        parts.append(words(cell.words, alone=not cell.values and not cell.missing))
    if cell.missing:
        parts.append(figure.missing if not parts else f"{figure.missing} in {cell.missing}")
    return ", ".join(parts) + (f" {MARKED}" if cell.marks else "")


def may_be_best(name, cell):
    return name not in (FLOOR, DIRECT) and not cell.doubtful


def best_of(figure, row):
    """The best median of the row as it is written; None if no order makes sense."""
    medians = [cell.median for name, cell in row.items()
               if cell.values and not cell.words and may_be_best(name, cell)]
    if figure.best is None or len(medians) < 2:
        return None
    return number(min(medians) if figure.best == "low" else max(medians), figure)


def order(report):
    """The contestants present: those who do the same work first, the floor and direct last."""
    names = [one["name"] for one in report["contestants"] if "absent" not in one]
    return sorted(names, key=lambda name: {FLOOR: 1, DIRECT: 2}.get(name, 0))


def rows(work, found, names):
    """The lines of one work, and its marks: {mark: {contestant: Cell}}."""
    lines, marks = [], {}
    for figure in map(Figure.read, work["figures"]):
        row = found.get(figure.key, {})
        if not figure.row or not row:
            continue
        best = best_of(figure, row)
        of_row = [written(row[name], figure, best if may_be_best(name, row[name]) else None)
                  if name in row else "" for name in names]
        lines.append(f"| {work['title']}: {figure.title} | " + " | ".join(of_row) + " |")
        for name, cell in row.items():
            # Derived figures carry the marks of others, who tell of them themselves.
            for mark in cell.marks if figure.derived is None else ():
                marks.setdefault(mark, {})[name] = cell
    return lines, marks


def notes(work, marks):
    """Why cells of a work are marked."""
    for mark, who in marks.items():
        # What stands before it is the part of the work.
        word = mark.rpartition(": ")[2]
        reason = f" ({REASONS[word]})" if word in REASONS else ""
        rounds = ", ".join(f"{name} in {cell.marks[mark]} of {cell.rounds} rounds"
                           for name, cell in who.items())
        yield f"{MARKED} {work['title']}: {mark}{reason}: {rounds}."


def table(report, kind):
    """The table of one kind of work with its notes; None if it was not run."""
    names, found = order(report), cells(report)
    taken = {run["contestant"] for run in report["runs"]
             if run["work"] in {one["name"] for one in report["works"] if one["kind"] == kind}}
    names = [name for name in names if name in taken]
    lines, remarks = [], []
    for work in report["works"]:
        if work["kind"] == kind:
            of_work, marks = rows(work, found[work["name"]], names)
            lines += of_work
            remarks += notes(work, marks)
    if not lines:
        return None
    head = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    return "\n".join(head + lines) + ("\n\n" + "  \n".join(remarks) if remarks else "")


def setting(report):
    """What was measured on, with which versions, and who is missing."""
    machine = report["machine"]
    kind = "virtual machine" if machine["virtual"] else "machine"
    revision, rounds = machine["revision"] or "an unknown revision", report["options"]["rounds"]
    text = [
        f"{machine['date']}, {kind} with {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gib']} GiB, {machine['system']}, Linux {machine['kernel']}; "
        f"Tidegate at {revision}; {rounds} round{'s' if rounds > 1 else ''}."
    ]
    sizes = [run["figures"]["event_bytes"] for run in report["runs"]
             if run["figures"].get("event_bytes")]
    if sizes:
        text.append(f"Events of {statistics.median(sizes):.0f} bytes.")
    present = [f"{one['name']} {one['version']}" for one in report["contestants"]
               if one.get("version")]
    present += [f"{name} {version}" for name, version in report["tools"].items()]
    text.append("Versions: " + ", ".join(present) + ".")
    text += [f"Absent: {one['name']} ({one['absent']})." for one in report["contestants"]
             if "absent" in one]
    text += [f"Left out: {reason}." for reason in report["left_out"]]
    if report["options"]["quick"]:
        text.append("**A run with --quick: it shows that everything runs; its figures mean nothing.**")
    if not report["complete"]:
        text.append("**The run was interrupted: not every round is whole.**")
    return "\n".join(text)
