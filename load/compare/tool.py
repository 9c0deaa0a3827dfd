"""Runs of tidegate-load, and the figures taken from its reports.

Owns the options of each kind of run, and two marks that the tool has not. Whoever forwards events
one by one and far too late shows neither in its rate nor as coalesced (`late`), and a quiet stream
that is lost while the others are held shows in nothing else (`fewer_live`).
"""

import json

from figures import DIRECT
from processes import AUTHORIZATION, Failed, log_tail, program
from stage import wait_for_kernel


def load(stage, options, timeout_s):
    """Runs the tool; its report and the command."""
    path, log = stage.directory / "tool.json", stage.directory / "tool.log"
    path.unlink(missing_ok=True)
    command = ["tidegate-load", "--url", stage.url, "-H", AUTHORIZATION, *stage.tool, "--settle", "0", *options,
               "--quiet", "--json", str(path)]
    status = stage.processes.run([program(command[0]), *command[1:]], log, timeout_s)
    if not path.exists():
        raise Failed(f"tidegate-load ended with status {status}: {log_tail(log)}")
    return json.loads(path.read_text()), command


def result(report, command, figures):
    return {"figures": figures, "marked": report["marked"], "command": command, "detail": report}


# They say that times cannot be trusted, and nothing of memory.
OF_TIMES = {"coalesced", "rate", "tool_busy", "clock"}


def marks_of_memory(report):
    return [mark for mark in report["marked"] if mark not in OF_TIMES]


def hold(stage, options, hold_s):
    """Streams that are held open for some seconds, until the memory of their server is read."""
    pid = stage.pid or stage.upstream_pid
    options = [*options, "--hold", f"{hold_s}s", "--pid", str(pid)]
    report, command = load(stage, options, timeout_s=180)
    done = {**result(report, command, {}), "marked": marks_of_memory(report)}
    server, streams = report["server"], report["streams"]
    if streams["live"] < streams["opened"]:
        done["marked"].append("fewer_live")
    # Without a gateway the measured process is the simulator: only the machine's part is of use.
    if stage.contestant != DIRECT:
        per_stream = server["bytes_per_stream"]
        done["figures"] = {name: per_stream[name] for name in ("rss", "pss", "private")}
        done["figures"] |= {"base": server["memory_before"]["rss_kb"] * 1024,
                            "total": server["memory_at"]["rss_kb"] * 1024}
    return done


def idle(streams, ramp):
    """The options of streams with one event each, then quiet."""
    return ["-n", str(streams), "--ramp", str(ramp), "--interval", "1h"]


def memory(stage, streams, ramp, hold_s):
    """Idle streams. A contestant has not served any stream before."""
    wait_for_kernel()
    done = hold(stage, idle(streams, ramp), hold_s)
    done["figures"]["kernel"] = done["detail"]["server"]["bytes_per_stream"]["machine_kernel"]
    return done


def late(relay_p50_us, interval_ms):
    """Whether most events came so late that they waited for those before them."""
    return relay_p50_us > interval_ms * 1000 / 2


def pace(stage, streams, interval_ms, hold_s, ramp=None):
    """Streams with an event each interval: CPU time per chunk and the delay of each event."""
    options = ["-n", str(streams), "--ramp", str(ramp or streams), "--interval",
               f"{interval_ms}ms", "--hold", f"{hold_s * 1000:.0f}ms"]
    if stage.pid:
        options += ["--pid", str(stage.pid)]
    report, command = load(stage, options, timeout_s=120)
    relay = report["latency_us"]["relay"]
    events = report["events"]
    figures = {"relay_p50": relay["p50"], "relay_p99": relay["p99"],
               "chunks_per_s": report["rate"]["chunks_per_s"],
               "coalesced": report["coalesced"]["share"],
               "event_bytes": events["body_bytes"] / events["chunks"] if events["chunks"] else None}
    if stage.pid:
        figures |= {f"cpu_{name}": us
                    for name, us in report["server"]["cpu_us_per_chunk"].items()}
    done = result(report, command, figures)
    if late(relay["p50"], interval_ms):
        done["marked"] = [*done["marked"], "late"]
    return done
