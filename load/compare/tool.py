"""Runs of tidegate-load, and the figures taken from its reports.

Owns the options of the two kinds of run, and one mark that the tool has not: whoever forwards
events one by one and far too late shows neither in its rate nor as coalesced.
"""

import json

from figures import DIRECT
from processes import Failed, log_tail, program
from stage import wait_for_kernel


def load(stage, options, timeout_s):
    """Runs the tool; its report and the command."""
    path, log = stage.directory / "tool.json", stage.directory / "tool.log"
    command = ["tidegate-load", "--url", stage.url, *options, "--settle", "0", "--quiet",
               "--json", str(path)]
    status = stage.processes.run([program(command[0]), *command[1:]], log, timeout_s)
    if not path.exists():
        raise Failed(f"tidegate-load ended with status {status}: {log_tail(log)}")
    return json.loads(path.read_text()), command


def result(report, command, figures):
    return {"figures": figures, "marked": report["marked"], "command": command, "detail": report}


def memory(stage, streams, ramp, hold_s):
    """Idle streams: one event each, then quiet. A contestant has not served any stream before."""
    wait_for_kernel()
    pid = stage.pid or stage.upstream_pid
    options = ["-n", str(streams), "--ramp", str(ramp), "--interval", "1h", "--hold",
               f"{hold_s}s", "--pid", str(pid)]
    report, command = load(stage, options, timeout_s=120)
    server = report["server"]
    per_stream = server["bytes_per_stream"]
    figures = {"kernel": per_stream["machine_kernel"]}
    # Without a gateway the measured process is the simulator: only the machine's part is of use.
    if stage.contestant != DIRECT:
        figures |= {name: per_stream[name] for name in ("rss", "pss", "private")}
        figures["base"] = server["memory_before"]["rss_kb"] * 1024
    return result(report, command, figures)


def late(relay_p50_us, interval_ms):
    """Whether most events came so late that they waited for those before them."""
    return relay_p50_us > interval_ms * 1000 / 2


def pace(stage, streams, interval_ms, hold_s):
    """Streams with an event each interval: CPU time per chunk and the delay of each event."""
    options = ["-n", str(streams), "--ramp", str(streams), "--interval", f"{interval_ms}ms",
               "--hold", f"{hold_s}s"]
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
