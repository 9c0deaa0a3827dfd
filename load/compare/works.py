"""The list of what `make compare` measures: one function per kind of work, one `Work` per row group.

To add a work, write a function that returns a `Work` and put it into `works`. Everything else
(order, repeats, report, tables) goes by what it says of itself.
"""

import resource
from dataclasses import asdict, dataclass
from typing import Callable, Optional

import bars
import ends
import short
import tool
from benchmark import Benchmark
from chart import charts
from figures import DIRECT, FLOOR, Derived, Figure
from processes import Missing
from stage import in_front_of_simulator
from tables import setting, table

SPARE_FILES = 300


@dataclass(frozen=True)
class Work:
    """One thing that is measured of each contestant."""
    name: str                          # unique, in the report
    kind: str                          # what --work selects by; one table each
    title: str                         # before the names of its figures
    seconds: float                     # about how long a run takes, for the time left
    figures: tuple                     # what it finds; the first is shown while running
    run: Callable                      # (contestant, directory) -> a run's part of the report
    only: Optional[tuple] = None       # the contestants that take part; unless given, all but these:
    direct: bool = False               # whether the run without a gateway is of use
    limited: bool = False              # whether Tidegate with every limit takes part

    def takes(self, contestant):
        if contestant == DIRECT:
            return self.direct
        if contestant == bars.LIMITED and self.only is None:
            return self.limited
        return self.only is None or contestant in self.only

    def described(self):
        """For the report."""
        return {"name": self.name, "kind": self.kind, "title": self.title,
                "figures": [asdict(one) for one in self.figures]}


@dataclass(frozen=True)
class Extent:
    """How much is done: what --quick cuts down."""
    idle_streams: tuple = (1000, 5000, 9500)
    paces: tuple = ((2000, 50), (1000, 100))   # streams, milliseconds between events
    ramp: int = 4000                           # idle streams opened per second
    idle_s: int = 4                            # Tidegate gives memory back every second
    pace_s: int = 6
    connections: int = 50
    short_s: int = 4
    leaves: int = 20
    deaths: int = 3


QUICK = Extent(idle_streams=(500,), paces=((500, 100),), idle_s=1, pace_s=3, short_s=1, leaves=3,
               deaths=1)


def streams_at_most():
    """What the gateway's and the simulator's open files allow: two for a stream in the gateway."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (hard - SPARE_FILES) // 2 if hard != resource.RLIM_INFINITY else 1 << 30


def on_stage(measure, *arguments, **how):
    """A run of `measure` with the contestant in front of a simulator."""
    def run(contestant, directory):
        with in_front_of_simulator(contestant, directory, **how) as stage:
            return measure(stage, *arguments)
    return run


def memory(streams, extent, largest):
    kb = 1 / 1000
    figures = (
        Figure("rss", "user memory per stream, kB", kb, 2, gateway=True),
        Figure("pss", "user memory per stream, PSS, kB", kb, gateway=True, row=False),
        Figure("private", "user memory per stream, private, kB", kb, gateway=True, row=False),
        Figure("base", "before the first stream, MB", 1e-6, gateway=True, row=largest),
        Figure("kernel", "kernel memory per stream of the whole machine, kB", kb, best=None,
               row=largest),
        Figure("kernel_added", "… more than without a gateway, kB", kb, best=None, row=largest,
               derived=Derived("kernel", "minus", DIRECT)),
    )
    return Work(f"memory-{streams}", "memory", f"{streams:,} idle streams",
                streams / extent.ramp + extent.idle_s + 1.5, figures,
                on_stage(tool.memory, streams, extent.ramp, extent.idle_s), direct=largest)


def pace(streams, interval_ms, extent):
    figures = (
        Figure("cpu_total", "CPU per chunk, µs", gateway=True),
        Figure("cpu_user", "of it in user mode, µs", gateway=True),
        Figure("cpu_system", "of it in the kernel, µs", gateway=True, row=False),
        Figure("cpu_ratio", "CPU relative to the raw relay", digits=2, gateway=True,
               derived=Derived("cpu_total", "over", FLOOR)),
        Figure("relay_p50", "event's delay, p50, µs", digits=0),
        Figure("relay_p99", "event's delay, p99, µs", digits=0),
        Figure("added_p50", "added to the direct p50, µs", digits=0,
               derived=Derived("relay_p50", "minus", DIRECT)),
        Figure("added_p99", "added to the direct p99, µs", digits=0,
               derived=Derived("relay_p99", "minus", DIRECT)),
        Figure("chunks_per_s", "chunks per second that arrived", digits=0, best=None),
        Figure("event_bytes", "bytes per event", digits=0, best=None, row=False),
        Figure("coalesced", "share of chunks that shared a read", digits=4, row=False),
    )
    per_s = 1000 // interval_ms
    return Work(f"cpu-{streams}x{per_s}", "cpu", f"{streams:,} streams × {per_s}/s",
                extent.pace_s + 2, figures,
                on_stage(tool.pace, streams, interval_ms, extent.pace_s), direct=True,
                limited=True)


def short_requests(extent):
    figures = (
        Figure("cpu", "CPU per request, µs", gateway=True),
        Figure("cpu_ratio", "CPU relative to the raw relay", digits=2, gateway=True,
               derived=Derived("cpu", "over", FLOOR)),
        Figure("requests_per_s", "requests per second", digits=0, best="high"),
        Figure("p50", "p50, µs", digits=0),
        Figure("p99", "p99, µs", digits=0),
    )
    return Work("short", "short", f"short requests, {extent.connections} connections",
                extent.short_s + 1, figures, on_stage(short.short, extent.connections,
                                                              extent.short_s), direct=True,
                limited=True)


def leave(extent):
    figures = (
        Figure("ms", "upstream knows after, ms", digits=2),
        Figure("told", "by", best=None),
    )
    return Work("leave", "ends", "client leaves", 0.3, figures,
                lambda contestant, directory: ends.leave(contestant, directory, extent.leaves),
                direct=True)


def die(how, title, extent):
    figures = (
        Figure("seen", "client sees", best=None),
        Figure("ms", "… after, ms", digits=2),
        Figure("end_ms", "until the connection ends, ms", digits=1, row=False),
    )
    return Work(f"die-{how}", "ends", title, 0.8, figures,
                lambda contestant, directory: ends.die(contestant, directory, how, extent.deaths),
                direct=True)


def works(extent):
    """All of it, in the order of a round."""
    fitting = [one for one in extent.idle_streams if one <= streams_at_most()]
    return [
        *(memory(one, extent, one == max(fitting)) for one in fitting),
        *(pace(streams, interval_ms, extent) for streams, interval_ms in extent.paces
          if streams <= streams_at_most()),
        short_requests(extent),
        leave(extent),
        die("fin", "upstream closes in mid-stream", extent),
        die("rst", "upstream resets in mid-stream", extent),
    ]


def select(extent, wanted_kinds):
    """The works to be done, why others are not, and the versions of tools that are not ours."""
    wanted = [one for one in works(extent) if not wanted_kinds or one.kind in wanted_kinds]
    left_out = [f"{streams:,} idle streams: open files suffice for {streams_at_most():,}"
                for streams in extent.idle_streams if streams > streams_at_most()]
    left_out += [f"{streams:,} streams: open files suffice for {streams_at_most():,}"
                 for streams, _ in extent.paces if streams > streams_at_most()]
    tools = {}
    if any(one.kind == "short" for one in wanted):
        try:
            tools["wrk"] = short.version()
        except Missing as reason:
            left_out.append(f"short requests: {reason}")
            wanted = [one for one in wanted if one.kind != "short"]
    return wanted, left_out, tools


# Which charts stand above the table that they are drawn from.
CHARTS_OF = {"memory": ["memory.svg"], "cpu": ["cpu.svg", "added.svg"]}


def sections(report, images):
    """The parts of the page."""
    result = {"setting": setting(report), "bars": bars.table(report)}
    for kind in COMPARE.kinds():
        parts = [f"![{name.removesuffix('.svg')}](benchmarks/{name})"
                 for name in CHARTS_OF.get(kind, []) if name in images]
        found = table(report, kind)
        result[kind] = "\n\n".join([*parts, found]) if found else None
    return result


COMPARE = Benchmark("compare", 5, Extent(), QUICK, works, select, sections, charts)
