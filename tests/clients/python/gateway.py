"""What the checks of tests/clients share: the gateway's metrics, and how the cases are run.

    CHECK GATEWAY_URL ADMIN_URL MODE

A case is a function, async or not in what it calls, of what `run` was given; its name is that of the
case. A line is printed per case: name, ok or FAILED, detail, separated by tabs.
"""

import asyncio
import inspect
import re
import signal
import sys
import time
import urllib.request

GATEWAY, ADMIN, MODE = sys.argv[1:4]
CASE_SECONDS = 30
WORDS = ["The ", "tide ", "comes ", "in ", "without "]
PROMPT = [{"role": "user", "content": "hello"}]
# What the simulated upstream is asked for in the cases of the same names.
SLOW = {"sim-interval": "600ms", "sim-count": "5"}
BROKEN = {"sim-fault": "fin", "sim-fault-after": "3", "sim-interval": "20ms"}
LONG = {"sim-interval": "300ms", "sim-count": "50"}
SHORT = {"sim-count": "5"}
REFUSED = {"sim-status": "429"}


async def value(given):
    return await given if inspect.isawaitable(given) else given


async def each(stream):
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


def metric(series):
    """The value of one series, its labels as far as `series` gives them."""
    with urllib.request.urlopen(f"{ADMIN}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(rf"^{re.escape(series)}\S* (\S+)$", text, re.MULTILINE)
    assert found, f"no series {series} in /metrics"
    return sum(float(number) for number in found)


def ended(reason):
    return metric(f'tidegate_streams_ended_total{{upstream="simulated",reason="{reason}"')


async def until(what, holds, seconds=1.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


def same(got, wanted):
    assert got == wanted, f"{got!r} instead of {wanted!r}"


class Heartbeats:
    """Counts those sent while it is entered; four gaps of a slow stream have one each at least."""

    def __enter__(self):
        self.before = metric("tidegate_heartbeats_total")
        return self

    def __exit__(self, failed, *_):
        if not failed:
            self.sent = metric("tidegate_heartbeats_total") - self.before
            assert self.sent >= 4, f"only {self.sent} heartbeats in 4 gaps"

    def __str__(self):
        return f"{self.sent:.0f} heartbeats"


async def breaks_off(error_class, words, read):
    """`read` has to add the first words to its list and then raise `error_class`, which says why."""
    truncated = ended("upstream_truncated")
    seen = []
    try:
        await read(seen)
    except error_class as error:
        same("".join(seen), "".join(words))
        assert "upstream_truncated" in str(error) + str(getattr(error, "code", "")), f"{error!r}"
        await until("ended once, not retried", lambda: ended("upstream_truncated") == truncated + 1)
        return type(error).__name__
    raise AssertionError(f"silent success after {seen}")


async def closes(read):
    """`read` has to read two pieces of a long stream, call what it is given, and leave."""
    closed = ended("client_closed")
    await read(lambda: same(metric("tidegate_streams_live"), 1))
    await until("counted as client_closed", lambda: ended("client_closed") == closed + 1)
    await until("no stream lives", lambda: metric("tidegate_streams_live") == 0)


async def is_refused(error_class, ask):
    try:
        await value(ask())
    except error_class as error:
        return type(error).__name__
    raise AssertionError("a 429 was taken for success")


def out_of_time(*_):
    raise TimeoutError(f"not done within {CASE_SECONDS} s")


def run(cases, given, close=lambda: None):
    """Runs every case, then `close`, and ends the program."""

    async def all_of_them():
        failed = False
        signal.signal(signal.SIGALRM, out_of_time)
        for case in cases:
            signal.alarm(CASE_SECONDS)
            try:
                result, detail = "ok", await case(given) or ""
            except Exception as error:
                failed = True
                result, detail = "FAILED", " ".join(f"{type(error).__name__}: {error}".split())
            finally:
                signal.alarm(0)
            print(case.__name__, result, detail, sep="\t", flush=True)
        await value(close())
        return int(failed)

    sys.exit(asyncio.run(all_of_them()))
