"""The cases of tests/clients with httpx-sse: an event stream read as such, no API above it.

    httpx_sse_events.py GATEWAY_URL ADMIN_URL chat
"""

import json

import httpx
from httpx_sse import connect_sse

from gateway import (
    BROKEN, GATEWAY, LONG, PROMPT, REFUSED, SLOW, WORDS,
    Heartbeats, closes, ended, run, same, until,
)

ASK = {"model": "tide-1", "messages": PROMPT, "stream": True}


def connect(client, headers):
    return connect_sse(client, "POST", f"{GATEWAY}/v1/chat/completions", json=ASK, headers=headers)


def text_of(event):
    return json.loads(event.data)["choices"][0]["delta"]["content"]


async def stream(client):
    with Heartbeats() as beats, connect(client, SLOW) as source:
        events = list(source.iter_sse())
    same([text_of(event) for event in events[:-1]], WORDS)
    same(events[-1].data, "[DONE]")
    return str(beats)


async def failure(client):
    truncated = ended("upstream_truncated")
    seen = []
    try:
        with connect(client, BROKEN) as source:
            for event in source.iter_sse():
                seen.append(event)
    except httpx.RemoteProtocolError as error:
        same([text_of(event) for event in seen[:-1]], WORDS[:3])
        same(json.loads(seen[-1].data)["error"]["code"], "upstream_truncated")
        await until("ended once", lambda: ended("upstream_truncated") == truncated + 1)
        return type(error).__name__
    raise AssertionError(f"silent success after {seen}")


async def cancel(client):
    async def read(half_way):
        with connect(client, LONG) as source:
            for seen, _ in enumerate(source.iter_sse(), 1):
                if seen == 2:
                    half_way()
                    break

    await closes(read)


async def status(client):
    with connect(client, REFUSED) as source:
        same(source.response.status_code, 429)
        source.response.read()
        same(source.response.json()["error"]["type"], "rate_limit_error")


client = httpx.Client(timeout=20)
run([stream, failure, cancel, status], client, client.close)
