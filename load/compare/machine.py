"""What the figures were measured on: without it they mean nothing."""

import os
import platform
import subprocess
import time
from pathlib import Path

from processes import ROOT


def first(path, start):
    """The value of the first line of a file that starts so."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(start):
            return line.partition(":")[2].strip()
    return None


def system():
    """The distribution's name."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def revision():
    """The commit that was measured, and whether files differed from it; None outside a clone."""
    def git(*words):
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return None
    return commit and commit + (" with changes" if changed else "")


def machine():
    virtual = " hypervisor" in (first("/proc/cpuinfo", "flags") or "")
    memory_kb = int(first("/proc/meminfo", "MemTotal").split()[0])
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": virtual,
        "memory_gib": round(memory_kb / 1024 / 1024, 1),
        "kernel": platform.release(),
        "system": system(),
        "revision": revision(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
