"""What a figure is, and how those of several rounds become one cell of a table.

Owns the arithmetic of the report: which attempt counts, differences and ratios within a round,
medians and spreads. Refuses to hide: rounds whose run is marked are left out of a figure only
where others are not, their marks go with the cell in any case, and a round without a value is
counted as one.
"""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Optional

FLOOR = "raw-relay"
DIRECT = "direct"


@dataclass(frozen=True)
class Derived:
    """A figure made of another and of someone else's in the same round."""
    of: str
    how: str                       # "minus" or "over"
    against: str                   # whose: the floor's, or that without any gateway


@dataclass(frozen=True)
class Figure:
    """One row of a table: what it is called and how it is written."""
    key: str
    title: str
    scale: float = 1.0             # written value = measured value × scale
    digits: int = 1
    best: Optional[str] = "low"    # "low", "high", or None where no order makes sense
    missing: str = "–"             # what a round without a value means
    derived: Optional[Derived] = None
    row: bool = True               # False: in the report only
    gateway: bool = False          # True: there is none without a gateway

    @staticmethod
    def read(data):
        """From a report."""
        derived = data.get("derived") and Derived(**data["derived"])
        return Figure(**{**data, "derived": derived})


@dataclass
class Cell:
    """What several rounds found of one figure of one contestant."""
    values: list = field(default_factory=list)       # one per round that has one
    words: Counter = field(default_factory=Counter)  # outcomes that are no numbers
    missing: int = 0                                 # rounds without a value
    rounds: int = 0                                  # all of them
    left_out: int = 0                                # marked, and others are not
    marks: Counter = field(default_factory=Counter)  # in how many rounds

    @property
    def doubtful(self):
        """Whether there are marked rounds only."""
        return bool(self.marks) and not self.left_out

    @property
    def median(self):
        return statistics.median(self.values) if self.values else None

    @property
    def low(self):
        return min(self.values, default=None)

    @property
    def high(self):
        return max(self.values, default=None)

    def summary(self):
        """For the report."""
        return {"median": self.median, "min": self.low, "max": self.high, "rounds": self.rounds,
                "left_out": self.left_out, "missing": self.missing,
                "outcomes": dict(self.words), "marks": dict(self.marks)}


def counted(runs):
    """The last attempt of each round: {work: {round: {contestant: run}}}."""
    table = {}
    for run in runs:
        rounds = table.setdefault(run["work"], {})
        rounds.setdefault(run["round"], {})[run["contestant"]] = run
    return table


def value(figure, contestant, in_round):
    """The figure of a contestant in a round and the marks that go with it."""
    run = in_round[contestant]
    marks = list(run["marked"])
    if figure.derived is None:
        return run["figures"].get(figure.key), marks
    rule = figure.derived
    other = in_round.get(rule.against)
    if other is None:
        return None, marks
    if rule.against != contestant:
        marks += [f"{rule.against}: {mark}" for mark in other["marked"]]
    own, others = run["figures"].get(rule.of), other["figures"].get(rule.of)
    if own is None or others is None:
        return None, marks
    if rule.how == "minus":
        return own - others, marks
    return (own / others if others else None), marks


def said_of(figure, contestant):
    """Whether the figure makes sense for the contestant."""
    if figure.gateway and contestant == DIRECT:
        return False
    return figure.derived is None or figure.derived.against != contestant \
        or figure.derived.how == "over"


def cell(figure, contestant, rounds):
    """All rounds of a figure in one; None if the contestant took no part."""
    seen = [value(figure, contestant, in_round) for _, in_round in sorted(rounds.items())
            if contestant in in_round]
    good = [one for one, marks in seen if not marks]
    found = Cell(rounds=len(seen), left_out=len(seen) - len(good) if good else 0)
    for one in good or [one for one, _ in seen]:
        if isinstance(one, dict):
            found.words.update(one)
        elif isinstance(one, str):
            found.words[one] += 1
        elif one is None:
            found.missing += 1
        else:
            found.values.append(one)
    for _, marks in seen:
        found.marks.update(set(marks))
    return found if seen else None


def cells(report):
    """{work: {figure: {contestant: Cell}}} of a whole report."""
    table = counted(report["runs"])
    names = [one["name"] for one in report["contestants"] if "absent" not in one]
    result = {}
    for work in report["works"]:
        rounds = table.get(work["name"], {})
        of_work = result.setdefault(work["name"], {})
        for figure in map(Figure.read, work["figures"]):
            row = {name: cell(figure, name, rounds) for name in names if said_of(figure, name)}
            of_work[figure.key] = {name: one for name, one in row.items() if one is not None}
    return result


def summary(report):
    """The same, for the report itself."""
    return {work: {key: {name: one.summary() for name, one in row.items()}
                   for key, row in rows.items()}
            for work, rows in cells(report).items()}
