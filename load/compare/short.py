"""Short JSON requests, one after another on kept connections, by wrk.

Owns the run of wrk and the CPU time around it. Refuses runs with errors: they are marked.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from processes import AUTHORIZATION, Failed, Missing, log_tail
from stage import cpu_s

SCRIPT = Path(__file__).resolve().parent / "short.lua"
MARK = "TOTALS "


def wrk():
    found = shutil.which("wrk")
    if not found:
        raise Missing("wrk is not installed (load/peers/peer install)")
    return found


def version():
    """As wrk tells it; it ends with a status of its own choice."""
    told = subprocess.run([wrk(), "-v"], capture_output=True, text=True).stdout
    return told.removeprefix("wrk").partition("[")[0].strip()


def totals(text):
    """What the script in wrk printed at the end."""
    for line in text.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise Failed(f"wrk printed no totals: {text.strip()[-300:]}")


def marks(found):
    return [f"{count} {what} errors of {found['requests']} requests"
            for what, count in found["errors"].items() if count]


def short(stage, connections, seconds):
    """As many requests as go through in the time; CPU time of the contestant for each."""
    log = stage.directory / "wrk.log"
    threads = min(2, len(os.sched_getaffinity(0)))
    command = ["wrk", "-t", str(threads), "-c", str(connections), "-d", f"{seconds}s",
               "-H", AUTHORIZATION, "-s", str(SCRIPT), stage.url]
    before = cpu_s(stage.pid) if stage.pid else 0
    status = stage.processes.run([wrk(), *command[1:]], log, timeout_s=seconds + 60)
    spent = cpu_s(stage.pid) - before if stage.pid else 0
    if status:
        raise Failed(f"wrk ended with status {status}: {log_tail(log)}")
    found = totals(log.read_text(errors="replace"))
    requests = found["requests"]
    if not requests:
        raise Failed(f"no request was answered: {found}")
    figures = {"requests_per_s": requests / found["duration_us"] * 1e6,
               "p50": found["p50_us"], "p99": found["p99_us"]}
    if stage.pid:
        figures["cpu"] = spent * 1e6 / requests
    return {"figures": figures, "marked": marks(found),
            "command": [*command[:-2], "load/compare/short.lua", stage.url], "detail": found}
