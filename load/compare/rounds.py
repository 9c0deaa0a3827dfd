"""The order of the runs, their repeats, and the report as it grows.

Owns who runs when. Invariant: in each round every contestant does every work once, next to the
others on the same work, so that a slow minute of the machine falls on all of them; a run that
marks itself is repeated at once, and all attempts stay in the report.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bars
from figures import DIRECT, summary
from processes import PEER, Failed
from tables import number

REPEATS = 2


def say(text):
    print(text, file=sys.stderr, flush=True)


def contestants(only, names=None):
    """All that take part or are absent with a reason, the run without a gateway last.

    With `names`, no others are considered; with `only`, fewer than might take part are wanted.
    """
    listed = subprocess.run([str(PEER), "list", "--json"], stdout=subprocess.PIPE, check=True)
    known = [peer for peer in [*json.loads(listed.stdout), {"name": DIRECT}]
             if names is None or peer["name"] in names]
    for one in only:
        if one not in [peer["name"] for peer in known]:
            raise Failed(f"--only: {one!r} is none of " + ", ".join(p["name"] for p in known))
    return [{key: peer[key] for key in ("name", "version", "absent") if key in peer}
            for peer in known if not only or peer["name"] in only]


def plan(wanted, names, rounds):
    """Every run in its order: each round begins with another contestant."""
    for round_ in range(1, rounds + 1):
        for place, work in enumerate(wanted):
            taking = [name for name in names if work.takes(name)]
            shift = (round_ + place - 1) % max(len(taking), 1)
            for name in taking[shift:] + taking[:shift]:
                yield round_, work, name


def attempt(work, name):
    """One run of a contestant with files of its own; a failure is a marked run without figures."""
    directory = Path(tempfile.mkdtemp(prefix="tidegate-compare-"))
    try:
        return work.run(name, directory)
    except (Failed, OSError) as reason:
        return {"figures": {}, "marked": [f"failed: {reason}"], "command": None, "detail": None}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Recorder:
    """The report as it grows, on the disk after every run."""

    def __init__(self, report, path):
        self.report, self.path = report, path

    def save(self):
        self.report["summary"] = summary(self.report)
        self.report["bars"] = [one.described() for one in bars.verdicts(self.report)]
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.report, indent=1) + "\n")
        os.replace(new, self.path)

    def add(self, run):
        self.report["runs"].append(run)
        self.save()


def headline(work, run):
    figure = work.figures[0]
    found = run["figures"].get(figure.key)
    if isinstance(found, dict):
        found = ", ".join(found)
    text = found if isinstance(found, str) or found is None else number(found, figure)
    marks = "  MARKED " + "; ".join(run["marked"]) if run["marked"] else ""
    return f"{figure.title} {text or '–'}{marks}"


def measure(recorder, runs):
    """All runs; those that mark themselves are repeated, the last attempt counts."""
    began, done_s, total_s = time.monotonic(), 0, sum(work.seconds for _, work, _ in runs)
    for number_, (round_, work, name) in enumerate(runs, 1):
        for repeat in range(1 + REPEATS):
            started = time.monotonic()
            found = attempt(work, name)
            took_s = round(time.monotonic() - started, 1)
            recorder.add({"round": round_, "work": work.name, "contestant": name,
                          "attempt": repeat + 1, "took_s": took_s, **found})
            say(f"[{number_}/{len(runs)}] {work.name} {name}: {headline(work, found)}")
            if not found["marked"]:
                break
        done_s += work.seconds
        if number_ == len(runs) or runs[number_][1] is not work:
            left = (time.monotonic() - began) * (total_s - done_s) / done_s
            say(f"--- round {round_}, about {datetime.timedelta(seconds=round(left))} left")
