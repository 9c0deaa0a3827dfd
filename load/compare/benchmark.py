"""The course of a benchmark, whichever it is: arguments, runs, report, tables, page.

Owns what `run` and `price` have in common. A benchmark says which works there are, who takes part,
and which parts of the page it fills; everything else goes by that.
"""

import argparse
import datetime
import json
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import publish
from machine import machine
from processes import BUILT, ENDING, Failed, Missing, end_on_signals, program
from rounds import Recorder, contestants, measure, plan, say

SCHEMA = 2


@dataclass(frozen=True)
class Benchmark:
    """What makes one benchmark another than the next."""
    name: str                            # of its parts of the page, its folder and its file
    rounds: int                          # by default
    full: Any                            # how much is done,
    quick: Any                           # and how much with --quick
    works: Callable                      # extent -> all works
    select: Callable                     # extent, kinds -> works to do, reasons for others, tools
    sections: Callable                   # report, images -> {part of the page: text or None}
    images: Callable = lambda _: {}      # report -> {file: image}
    names: Optional[tuple] = None        # who takes part; None: all peers, and no gateway

    def kinds(self):
        return list(dict.fromkeys(one.kind for one in self.works(self.full)))


def arguments(benchmark, about):
    parser = argparse.ArgumentParser(description=about,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds, folder = benchmark.kinds(), f"target/{benchmark.name}"
    parser.add_argument("--rounds", type=int, default=benchmark.rounds, metavar="N",
                        help=f"default: {benchmark.rounds}")
    parser.add_argument("--only", default="", metavar="NAME,…", help="these contestants")
    parser.add_argument("--work", default="", metavar="KIND,…", help="of " + ", ".join(kinds))
    parser.add_argument("--quick", action="store_true",
                        help="fewer streams and seconds: shows that everything runs, no more")
    parser.add_argument("--publish", action="store_true",
                        help="put the figures into docs/BENCHMARKS.md and docs/benchmarks/")
    parser.add_argument("--report", type=Path, metavar="FILE",
                        help="measure nothing: tables (and --publish) of this report")
    parser.add_argument("--out", type=Path, default=BUILT / benchmark.name, metavar="DIR",
                        help=f"where report and tables go; default: {folder}")
    options = parser.parse_args()
    options.only, options.work = (one.split(",") if one else []
                                  for one in (options.only, options.work))
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    for one in options.work:
        if one not in kinds:
            parser.error(f"--work: {one!r} is none of {', '.join(kinds)}")
    return options


def show(benchmark, report, folder):
    """The tables on standard output, and with the images in files."""
    parts = [text if section == "setting" else f"## {section}\n\n{text}"
             for section, text in benchmark.sections(report, {}).items() if text]
    text = "\n\n".join(parts) + "\n"
    print(text)
    (folder / "tables.md").write_text(text)
    for name, image in benchmark.images(report).items():
        (folder / name).write_text(image)


def run(benchmark, options):
    """Measures; the report. An interruption ends it early, with what there is."""
    for needed in ("tidegate", "tidegate-load"):
        program(needed)
    extent = benchmark.quick if options.quick else benchmark.full
    wanted, left_out, tools = benchmark.select(extent, options.work)
    listed = contestants(options.only, benchmark.names)
    for peer in listed:
        if "absent" in peer:
            say(f"{peer['name']} is absent: {peer['absent']}")
    for reason in left_out:
        say(f"left out: {reason}")
    names = [peer["name"] for peer in listed if "absent" not in peer]
    runs = list(plan(wanted, names, options.rounds))
    if not runs:
        raise Failed("nothing to measure: no contestant is present, or none takes part")
    report = {
        "schema": SCHEMA, "benchmark": benchmark.name, "complete": False,
        "options": {"rounds": options.rounds, "only": options.only, "work": options.work,
                    "quick": options.quick, "extent": asdict(extent)},
        "machine": machine(), "tools": tools, "contestants": listed, "left_out": left_out,
        "works": [work.described() for work in wanted], "runs": [],
    }
    recorder = Recorder(report, options.out / "report.json")
    estimate = datetime.timedelta(seconds=round(sum(work.seconds for _, work, _ in runs)))
    say(f"{len(runs)} runs, about {estimate}; {recorder.path}")
    try:
        measure(recorder, runs)
        report["complete"] = True
    except KeyboardInterrupt:
        say("interrupted: the report holds what was measured until now")
    # What is left to do is short; nothing runs any more that would have to be ended.
    for one in ENDING:
        signal.signal(one, signal.SIG_DFL)
    recorder.save()
    return report


def read(benchmark, path):
    """A report of an earlier run; Failed if it is another benchmark's."""
    report = json.loads(path.read_text())
    if (report.get("schema"), report.get("benchmark")) != (SCHEMA, benchmark.name):
        raise Failed(f"{path} is no report of {benchmark.name} in schema {SCHEMA}; run it again")
    return report


def main(benchmark, about):
    """Does what the command line says; the exit status, which tells nothing of the figures."""
    end_on_signals()
    options = arguments(benchmark, about)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        report = read(benchmark, options.report) if options.report else run(benchmark, options)
        show(benchmark, report, options.out)
        if options.publish:
            publish.publish(report, benchmark.sections, benchmark.images(report))
            say(f"published in {publish.PAGE} and {publish.FOLDER}")
    except (Failed, Missing, OSError, ValueError) as reason:
        say(f"{benchmark.name}: {reason}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if report["complete"] else 130
