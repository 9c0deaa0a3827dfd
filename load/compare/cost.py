"""The list of what `make price` measures: what a stream costs in Tidegate, in every shape.

Owns the rows; bars.py owns what is required of them. Peers take part only where a bar is a multiple
of theirs or they show what the machine makes of the same work.
"""

from dataclasses import dataclass

import bars
import shapes
import tool
from benchmark import Benchmark
from figures import FLOOR, Derived, Figure
from processes import Missing
from shapes import Shape
from stage import in_front_of_simulator
from tables import setting
from works import Work, on_stage, streams_at_most

SUBJECT = bars.SUBJECT
BOTH = (SUBJECT, bars.LIMITED)
HELD = ("haproxy", FLOOR)

H2_TLS_UPSTREAM = Shape(upstream_http=2, upstream_tls=True)
TLS_CLIENT = Shape(client_tls=True, upstream_http=2, upstream_tls=True)
H2 = Shape(client_http=2, upstream_http=2)


@dataclass(frozen=True)
class Extent:
    """How much is done: what --quick cuts down."""
    idle_streams: int = 9500
    ramp: int = 4000               # streams opened per second
    tls_ramp: int = 3000           # handshakes cost more
    h2_streams: int = 100_000
    h2_ramp: int = 5000            # a crowd that comes faster leaves its buffers behind
    idle_s: int = 4                # the gateway gives memory back every second
    body_streams: int = 5000
    body_bytes: int = 60_000
    warm_streams: int = 50
    crowd_events: int = 6          # one a second
    after_s: int = 30
    few: int = 500
    # A few streams then have an event each 50 ms. At twice the rate it was 25, and whatever kept
    # the machine that long put two events of a stream into one read, which marks the run.
    chunks_per_s: int = 10_000
    pace_s: float = 4.75           # five intervals of the many: as many events of each stream


QUICK = Extent(idle_streams=500, h2_streams=2000, idle_s=4, body_streams=300, crowd_events=3,
               after_s=3, few=50, chunks_per_s=1000, pace_s=2)

KB, MB = 1 / 1000, 1e-6


def idle(name, title, shape, streams, ramp, extent, only=BOTH):
    """Idle streams of one shape, in a freshly started gateway."""
    figures = (
        Figure("rss", "user memory per stream, kB", KB, 2),
        Figure("total", "user memory in all, MB", MB),
        Figure("pss", "user memory per stream, PSS, kB", KB, row=False),
        Figure("private", "user memory per stream, private, kB", KB, row=False),
        Figure("base", "user memory before the first stream, MB", MB, row=False),
    )

    def measure(stage):
        return tool.hold(stage, tool.idle(streams, ramp), extent.idle_s)
    return Work(f"idle-{name}", "idle", f"{streams:,} idle streams, {title}",
                streams / ramp + extent.idle_s + 1.8, figures,
                on_stage(measure, shape=shape), only=only)


def went_otherwise(streams):
    """Whether streams that were to complete or to be left ended in another way, or too few did
    the one or the other for it to be a half."""
    done, left = streams["completed"], streams["aborted"]
    return done + left < streams["opened"] or min(done, left) < 0.4 * streams["opened"]


def after(stage, extent):
    """Memory after a crowd against that after a few streams, in the same process."""
    given = ["--pid", str(stage.pid)]
    warm, _ = tool.load(stage, [
        "-n", str(extent.warm_streams), "--ramp", str(extent.warm_streams), "--interval", "100ms",
        "--count", "10", "--settle", f"{extent.idle_s}s", *given], timeout_s=60)
    # Whoever is to leave does so before the last event would have come.
    leave_s = extent.crowd_events - 1
    crowd, command = tool.load(stage, [
        "-n", str(extent.idle_streams), "--ramp", str(extent.ramp), "--interval", "1s", "--count",
        str(extent.crowd_events), "--abort-share", "0.5", "--abort-within",
        f"{leave_s}s", "--settle", f"{extent.after_s}s", *given],
        timeout_s=extent.after_s + 120)
    before = warm["server"]["memory_after"]["rss_kb"] * 1024
    later = crowd["server"]["memory_after"]["rss_kb"] * 1024
    streams = crowd["streams"]
    figures = {"kept": later / before, "before": before, "after": later,
               "live_max": streams["live_max"], "completed": streams["completed"],
               "left": streams["aborted"]}
    marked = [*tool.marks_of_memory(warm), *tool.marks_of_memory(crowd),
              *(["ends"] if went_otherwise(streams) else [])]
    return {"figures": figures, "marked": marked, "command": command,
            "detail": {"warm": warm, "crowd": crowd}}


def after_crowd(extent):
    figures = (
        Figure("kept", "user memory, relative to that after a few", digits=2),
        Figure("before", "user memory after a few, MB", MB),
        Figure("after", "user memory after all, MB", MB),
        Figure("live_max", "streams open at once", digits=0, row=False),
        Figure("completed", "streams that completed", digits=0, row=False),
        Figure("left", "streams that the client left", digits=0, row=False),
    )
    title = (f"{extent.after_s} s after {extent.idle_streams:,} streams, half completed and half "
             f"left by the client")
    seconds = extent.after_s + extent.idle_s + extent.crowd_events + 5
    return Work("after", "after", title, seconds, figures, on_stage(after, extent),
                only=BOTH)


def one_after_another(measures):
    """A run of several parts, each on a stage of its own: {part: what it found}, and all marks."""
    def run(contestant, directory):
        found = {}
        for part, measure in measures.items():
            place = directory / part
            place.mkdir()
            with in_front_of_simulator(contestant, place) as stage:
                found[part] = measure(stage)
        return found, [f"{part}: {mark}" for part, one in found.items() for mark in one["marked"]]
    return run


def bodies(extent):
    """What a request's body leaves in memory while its answer streams."""
    def streaming(size):
        options = ["-n", str(extent.body_streams), "--ramp", str(extent.ramp), "--interval", "1s",
                   "--body-bytes", str(size)]
        return lambda stage: tool.hold(stage, options, extent.idle_s)
    both = one_after_another({"without": streaming(0), "with": streaming(extent.body_bytes)})

    def run(contestant, directory):
        found, marked = both(contestant, directory)
        figures = {part: one["figures"]["rss"] for part, one in found.items()}
        figures["added"] = figures["with"] - figures["without"]
        return {"figures": figures, "marked": marked, "command": found["with"]["command"],
                "detail": {part: one["detail"] for part, one in found.items()}}

    figures = (
        Figure("added", "user memory per stream more than without bodies, kB", KB, 2),
        Figure("with", "user memory per stream, kB", KB, 2),
        Figure("without", "user memory per stream without bodies, kB", KB, 2),
    )
    title = f"{extent.body_streams:,} streaming answers to requests of {extent.body_bytes // 1000} kB"
    seconds = 2 * (extent.body_streams / extent.ramp + extent.idle_s + 2)
    return Work("bodies", "bodies", title, seconds, figures, run, only=BOTH)


def many(extent):
    """Whether a chunk costs more when it is one of many streams' at the same total rate."""
    def paced(streams):
        interval_ms = streams * 1000 // extent.chunks_per_s
        return lambda stage: tool.pace(stage, streams, interval_ms, extent.pace_s,
                                       min(streams, extent.ramp))
    both = one_after_another({"few": paced(extent.few), "many": paced(extent.idle_streams)})

    def run(contestant, directory):
        found, marked = both(contestant, directory)
        figures = {part: one["figures"]["cpu_total"] for part, one in found.items()}
        figures["growth"] = figures["many"] / figures["few"]
        return {"figures": figures, "marked": marked, "command": found["many"]["command"],
                "detail": {part: one["detail"] for part, one in found.items()}}

    figures = (
        Figure("growth_ratio", f"CPU per chunk, relative to {extent.few} streams, over the raw "
               "relay's ratio", digits=2, derived=Derived("growth", "over", FLOOR)),
        Figure("growth", f"CPU per chunk, relative to {extent.few} streams", digits=2),
        Figure("few", f"CPU per chunk of {extent.few} streams, µs"),
        Figure("many", "CPU per chunk, µs"),
    )
    title = f"{extent.chunks_per_s:,} chunks/s from {extent.idle_streams:,} streams"
    seconds = 2 * (extent.pace_s + 1.5) + 1 + extent.idle_streams / extent.ramp
    return Work("many", "many", title, seconds, figures, run, only=(*BOTH, FLOOR))


def works(extent):
    """All of it, in the order of a round."""
    def of(name, title, shape, ramp=extent.ramp, **more):
        return idle(name, title, shape, extent.idle_streams, ramp, extent, **more)
    return [
        of("h1", "HTTP/1.1 on both sides", None, only=(*BOTH, *HELD)),
        of("h2-tls", "HTTP/1.1, HTTP/2 over TLS upstream", H2_TLS_UPSTREAM),
        of("tls-h2-tls", "HTTP/1.1 over TLS, HTTP/2 over TLS upstream", TLS_CLIENT,
           extent.tls_ramp),
        idle("h2-h2", "HTTP/2 on both sides, in the clear", H2, extent.h2_streams, extent.h2_ramp,
             extent),
        after_crowd(extent),
        bodies(extent),
        many(extent),
    ]


def files_needed(work, extent):
    """Streams of HTTP/1.1 on both sides that a work has open at once."""
    return {"idle-h2-h2": 0, "bodies": extent.body_streams}.get(work.name, extent.idle_streams)


def select(extent, kinds):
    """The works to be done, why others are not, and other people's tools (none)."""
    wanted, left_out = [], []
    for work in works(extent):
        if kinds and work.kind not in kinds:
            continue
        if files_needed(work, extent) > streams_at_most():
            left_out.append(f"{work.title}: open files suffice for {streams_at_most():,}")
        elif work.name == "idle-tls-h2-tls" and (reason := no_certificate()):
            left_out.append(f"{work.title}: {reason}")
        else:
            wanted.append(work)
    return wanted, left_out, {}


def no_certificate():
    try:
        shapes.openssl()
    except Missing as reason:
        return reason
    return None


def sections(report, _):
    """The parts of the page."""
    return {"setting": setting(report), "bars": bars.table(report, others=True)}


PRICE = Benchmark("price", 3, Extent(), QUICK, works, select, sections, names=(*BOTH, *HELD))
