"""Programs that are started, waited for and ended, for the scripts that check and compare peers.

Owns every process it started and ends it by its process id, the last one first, whatever happens
to the script. Refuses to look for processes by name: others may run the same programs.
"""

import itertools
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILT = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
PEER = HERE / "peer"

# What every client shows; only Tidegate with its limits asks for it.
API_KEY = "tg-comparison"
AUTHORIZATION = f"authorization: Bearer {API_KEY}"

PATIENCE_S = 20
STOP_S = 10

# Below those the kernel gives to outgoing connections, and each used once by a script: a port
# that was listened on a moment ago still has connections in TIME_WAIT.
PORTS = range(15000, 32000)
_candidates = (PORTS[(os.getpid() * 61 + n) % len(PORTS)] for n in itertools.count())

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Missing(Exception):
    """A program that has to be built or installed first."""


class Failed(Exception):
    """A program that did not do what it was started for."""


def program(name):
    """A program of this repository, the release build if there is one."""
    for profile in ("release", "debug"):
        built = BUILT / profile / name
        if built.exists():
            return str(built)
    raise Missing(f"{name} is not built (cargo build --release --workspace)")


def end_on_signals():
    """SIGTERM and SIGHUP end the script as Ctrl-C does: by an exception, with all its clean-up."""
    def interrupt(number, _):
        raise KeyboardInterrupt(signal.Signals(number).name)
    for one in ENDING:
        # Whoever had one ignored (nohup) meant it.
        if signal.getsignal(one) != signal.SIG_IGN:
            signal.signal(one, interrupt)


def free_ports(count):
    """Ports that were free a moment ago."""
    found = []
    for candidate in itertools.islice(_candidates, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
        found.append(candidate)
        if len(found) == count:
            return found
    raise Failed(f"no {count} free ports from {PORTS.start} to {PORTS.stop}")


def log_tail(log):
    return Path(log).read_text(errors="replace").strip()[-300:]


def wait_for(port, process, log):
    """Until something listens on the port.

    Raises Failed with the end of the log if the process ends, or nothing listens in time.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"ended at once with status {process.returncode}: {log_tail(log)}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise Failed(f"not listening after {PATIENCE_S} s: {log_tail(log)}")


class Processes:
    """The processes of a `with` block; at its end, all of them are ended, the last one first."""

    def __init__(self):
        self._running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            while self._running:
                self.stop(self._running[-1])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def start(self, command, log):
        """Starts a command in a session of its own, so that Ctrl-C ends only the script."""
        # A signal between the start and the note of it would leave the process behind.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            with open(log, "wb") as to:
                process = subprocess.Popen(
                    command, stdout=to, stderr=to, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before))
            self._running.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process

    def stop(self, process):
        """Ends a process and whatever it started and left behind."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        try:
            # The session is its own, so its process group holds its children only.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._running.remove(process)

    def run(self, command, log, timeout_s):
        """Runs a command to its end and returns its status; Failed if it takes too long."""
        process = self.start(command, log)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{command[0]} did not end within {timeout_s} s") from None
        finally:
            self.stop(process)

    def peer(self, name, port, upstream, directory):
        """Starts a peer on a port and waits until it listens; its files are in the directory."""
        directory.mkdir(parents=True)
        log = directory / "log"
        words = [str(PEER), "start", name, str(port), str(upstream), str(directory)]
        process = self.start(words, log)
        wait_for(port, process, log)
        return process

    def simulator(self, log, *options):
        """Starts the simulated upstream; its process and its port."""
        port, = free_ports(1)
        process = self.start([program("tidegate"), "simulate", "--listen", f"127.0.0.1:{port}",
                              *options], log)
        wait_for(port, process, log)
        return process, port
