"""How streams end through a contestant: a client that leaves, an upstream that dies.

Owns both ends of one stream at a time, client and upstream, as plain sockets in one thread: what
happens at one end is timed at the other by the same clock. Refuses any HTTP library: what counts
is what is on the wire.
"""

import json
import selectors
import socket
import statistics
import struct
import time
from collections import Counter
from dataclasses import dataclass
from typing import Optional

from processes import AUTHORIZATION, Failed
from stage import PATH, in_front_of

WAIT_S = 10
NEVER = f"never within {WAIT_S} s"

BODY = b'{"model":"tide-1","stream":true,"messages":[{"role":"user","content":"hello"}]}'
REQUEST = (f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
           f"{AUTHORIZATION}\r\ncontent-length: {len(BODY)}\r\n\r\n").encode() + BODY
HEAD = (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
        b"transfer-encoding: chunked\r\n\r\n")
EVENT = (b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,'
         b'"model":"tide-1","choices":[{"index":0,"delta":{"content":"tide "},'
         b'"finish_reason":null}]}\n\n')

# Closing with this sends a reset.
RESET = struct.pack("ii", 1, 0)


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole_request(received):
    """Whether a request has come with all of the body that its length promises."""
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return False
    head = head.lower()
    if b"transfer-encoding: chunked" in head:
        return dechunk(body)[1]
    length = head.partition(b"content-length:")[2].split(b"\r\n")[0]
    return len(body) >= int(length or b"0")


def dechunk(body):
    """The payload of a chunked body as far as it has come, and whether the last chunk has."""
    payload = b""
    while True:
        size, found, rest = body.partition(b"\r\n")
        try:
            length = int(size.split(b";")[0], 16)
        except ValueError:
            return payload, False
        if not found:
            return payload, False
        if length == 0:
            return payload, b"\r\n" in rest
        payload += rest[:length]
        body = rest[length + 2:]


@dataclass
class Reply:
    """What a client has of a response."""
    received: bytes = b""
    end: Optional[str] = None      # "closed", "reset", or None while it is open

    def parts(self):
        """The payload and whether it is complete as HTTP sees it."""
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return b"", False
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            return dechunk(body)
        length = lower.partition(b"content-length:")[2].split(b"\r\n")[0]
        if length:
            return body, len(body) >= int(length)
        return body, self.end == "closed"

    def events(self):
        """The data of the complete events."""
        payload = self.parts()[0]
        blocks = payload.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]
        lines = [line for block in blocks for line in block.split(b"\n")]
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def has_error(self):
        """Whether the client was told of the failure by an event."""
        for data in self.events():
            try:
                if "error" in json.loads(data):
                    return True
            except (ValueError, TypeError):
                continue
        return False

    def is_over(self):
        return self.end is not None or self.parts()[1]

    def verdict(self):
        """What a client may conclude: a clean end looks like an answer that is complete."""
        error = "error event, then " if self.has_error() else ""
        if self.parts()[1]:
            return error + "clean end"
        if self.end is None:
            return (error + "nothing") if error else NEVER
        return error + ("abort" if self.end == "closed" else "abort (reset)")


class Upstream:
    """Takes requests, whatever connection they come by, and leaves the answers to the script."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._received = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in [*self._received, self._listener]:
            one.close()
        self._selector.close()

    def request(self):
        """The connection of the next whole request; no longer ours to watch."""
        deadline = time.monotonic() + WAIT_S
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                if key.fileobj is self._listener:
                    self._accept()
                elif self._read(key.fileobj):
                    return self._release(key.fileobj)
        raise Failed(f"the upstream got no request within {WAIT_S} s")

    def _accept(self):
        one, _ = self._listener.accept()
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received[one] = b""
        self._selector.register(one, selectors.EVENT_READ)

    def _read(self, one):
        try:
            data = one.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self._release(one).close()
            return False
        self._received[one] += data
        return whole_request(self._received[one])

    def _release(self, one):
        self._selector.unregister(one)
        del self._received[one]
        one.settimeout(WAIT_S)
        return one


def receive(client, reply):
    """Adds what comes next to the reply; False once nothing can come, or nothing did in time."""
    try:
        data = client.recv(65536)
    except ConnectionResetError:
        reply.end = "reset"
        return False
    except TimeoutError:
        return False
    if not data:
        reply.end = "closed"
        return False
    reply.received += data
    return True


def open_stream(stage, upstream):
    """A stream whose first event has arrived: client's socket, upstream's socket, reply."""
    client = socket.create_connection(("127.0.0.1", stage.port), WAIT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(REQUEST)
    served = upstream.request()
    served.sendall(HEAD + chunk(EVENT))
    reply = Reply()
    while not reply.events():
        if not receive(client, reply):
            raise Failed(f"no first event: {reply.received[:200]!r}")
    return client, served, reply


def leave_once(stage, upstream):
    """Seconds until the upstream knew that the client had left, and by what; None if never."""
    client, served, _ = open_stream(stage, upstream)
    with served:
        began = time.monotonic()
        client.close()
        try:
            told = "more bytes" if served.recv(1) else "FIN"
        except ConnectionResetError:
            told = "RST"
        except TimeoutError:
            return None, NEVER
        return time.monotonic() - began, told


def leave(contestant, directory, times):
    """Clients that leave in mid-stream: how long until the upstream knows."""
    waits, told = [], Counter()
    with Upstream() as upstream, in_front_of(upstream.port, contestant, directory) as stage:
        for _ in range(times):
            wait, how = leave_once(stage, upstream)
            told[how] += 1
            if wait is not None:
                waits.append(wait)
            # Who never tells twice will not tell the other times.
            if told[NEVER] == 2:
                break
    never = told[NEVER] > 0
    figures = {"ms": NEVER if never else statistics.median(waits) * 1e3,
               "told": {} if never else dict(told)}
    return {"figures": figures, "marked": [], "command": None, "detail": {"waits_s": waits}}


def die_once(stage, upstream, how):
    """What the client saw, and after how many seconds it first knew."""
    client, served, reply = open_stream(stage, upstream)
    with client:
        if how == "rst":
            served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        began = time.monotonic()
        served.close()
        seen = None
        while not reply.is_over() and receive(client, reply):
            if seen is None and reply.has_error():
                seen = time.monotonic() - began
        ended = time.monotonic() - began
        if reply.verdict() == NEVER:
            return NEVER, None, None
        return reply.verdict(), ended if seen is None else seen, ended


def die(contestant, directory, how, times):
    """Upstreams that die in mid-stream: what the client sees of it, and when."""
    verdicts, seen, ended = Counter(), [], []
    with Upstream() as upstream, in_front_of(upstream.port, contestant, directory) as stage:
        for _ in range(times):
            verdict, first, last = die_once(stage, upstream, how)
            verdicts[verdict] += 1
            if first is None:
                break
            seen.append(first)
            ended.append(last)
    figures = {"seen": dict(verdicts)}
    if seen:
        figures |= {"ms": statistics.median(seen) * 1e3, "end_ms": statistics.median(ended) * 1e3}
    return {"figures": figures, "marked": [], "command": None,
            "detail": {"seen_s": seen, "ended_s": ended}}
