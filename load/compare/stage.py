"""One contestant between a client and an upstream, freshly started for one run.

Owns what has to hold before a run begins: the contestant answers, has come to rest, and the
kernel has taken back the sockets of the run before. Refuses fixed ports: connections of the last
minute still hold theirs.
"""

import contextlib
import http.client
import os
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from figures import DIRECT
from processes import AUTHORIZATION, PATIENCE_S, Failed, Processes, free_ports

PATH = "/v1/chat/completions"
SHORT_REQUEST = '{"model":"tide-1","messages":[{"role":"user","content":"hello"}]}'
SHORT_HEADERS = {"content-type": "application/json", "sim-count": "20",
                 **dict([AUTHORIZATION.split(": ", 1)])}

REST_S = 0.2
REST_PATIENCE_S = 5
SLAB_STEP_KB = 512
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Stage:
    """What a run works with."""
    contestant: str
    port: int                      # where clients connect
    pid: Optional[int]             # of the contestant; None without one
    upstream_pid: Optional[int]    # of the simulator; None if the run is its own upstream
    directory: Path
    processes: Processes
    scheme: str = "http"
    tool: tuple = ()               # options of the load tool: how to speak to the contestant

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}{PATH}"


def stat(pid):
    """The fields of /proc/PID/stat after the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(root):
    """A process and all that descend from it."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(stat(entry)[1]), []).append(int(entry))
    found, unseen = set(), [root]
    while unseen:
        pid = unseen.pop()
        if pid not in found:
            found.add(pid)
            unseen += children.get(pid, [])
    return found


def cpu_s(root):
    """CPU time of a process and its descendants so far, user and system, seconds."""
    ticks = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            fields = stat(pid)
            # Fields 14 and 15 of proc_pid_stat(5); the list here begins with field 3.
            ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK_S


def resident_pages(root):
    pages = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages


def slab_kb():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1])
    return 0


def until_still(look, is_still):
    """Looks until two looks in a row are alike, or patience ends: then the figures tell."""
    deadline = time.monotonic() + REST_PATIENCE_S
    before = look()
    while time.monotonic() < deadline:
        time.sleep(REST_S)
        now = look()
        if is_still(before, now):
            return
        before = now


def wait_for_rest(pid):
    """Until a program has done with starting: no new processes, pages or CPU time."""
    until_still(lambda: (family(pid), resident_pages(pid), cpu_s(pid)),
                lambda before, now: before == now)


def wait_for_kernel():
    """Until the kernel gives no more memory back from the run before."""
    until_still(slab_kb, lambda before, now: before - now < SLAB_STEP_KB)


def answers(port, scheme="http"):
    """One short request over HTTP/1.1, answered well; Failed if not."""
    if scheme == "https":
        # Its certificate was made for this run.
        anyone = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_S,
                                                 context=anyone)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", PATH, SHORT_REQUEST, SHORT_HEADERS)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as fault:
        raise Failed(f"does not answer: {fault!r}") from None
    finally:
        connection.close()
    if answer.status != 200 or not body.startswith(b"{"):
        raise Failed(f"answers {answer.status} {body[:200]!r}")


@contextlib.contextmanager
def in_front_of_simulator(contestant, directory, shape=None):
    """The contestant in front of a simulator of its own, both at rest.

    With a `shape`, it is Tidegate, and they speak what the shape says; else HTTP/1.1 in cleartext.
    """
    with Processes() as processes:
        told = shape.simulator_options(directory) if shape else ()
        simulator, upstream = processes.simulator(directory / "simulator.log", *told)
        if contestant == DIRECT:
            answers(upstream)
            yield Stage(contestant, upstream, None, simulator.pid, directory, processes)
            return
        port, = free_ports(1)
        if shape:
            peer = shape.start(processes, contestant, port, upstream, directory)
            spoken = {"scheme": shape.scheme, "tool": shape.tool_options()}
        else:
            peer = processes.peer(contestant, port, upstream, directory / "peer")
            spoken = {}
        stage = Stage(contestant, port, peer.pid, simulator.pid, directory, processes, **spoken)
        answers(port, stage.scheme)
        wait_for_rest(peer.pid)
        yield stage
        if peer.poll() is not None:
            raise Failed(f"ended during the run with status {peer.returncode}")


@contextlib.contextmanager
def in_front_of(upstream, contestant, directory):
    """The contestant in front of an upstream that the run plays itself."""
    with Processes() as processes:
        if contestant == DIRECT:
            yield Stage(contestant, upstream, None, None, directory, processes)
            return
        port, = free_ports(1)
        peer = processes.peer(contestant, port, upstream, directory / "peer")
        yield Stage(contestant, port, peer.pid, None, directory, processes)
        if peer.poll() is not None:
            raise Failed(f"ended during the run with status {peer.returncode}")
