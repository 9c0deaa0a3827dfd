"""The cases of tests/clients with the anthropic package for Python.

    anthropic_messages.py GATEWAY_URL ADMIN_URL sync|async
"""

import anthropic

from gateway import (
    BROKEN, GATEWAY, LONG, MODE, PROMPT, REFUSED, SHORT, SLOW, WORDS,
    Heartbeats, breaks_off, closes, each, is_refused, run, same, value,
)

ASK = {"model": "tide-1", "messages": PROMPT, "max_tokens": 99}


def text_of(event):
    return event.delta.text if event.type == "content_block_delta" else ""


async def stream(client):
    with Heartbeats() as beats:
        events = [event async for event in each(await value(
            client.messages.create(**ASK, stream=True, extra_headers=SLOW)
        ))]
    same([text for text in map(text_of, events) if text], WORDS)
    same((events[0].type, events[-1].type), ("message_start", "message_stop"))
    same(events[0].message.usage.input_tokens, 12)
    same((events[-2].delta.stop_reason, events[-2].usage.output_tokens), ("end_turn", 5))
    return str(beats)


async def failure(client):
    async def create(seen):
        async for event in each(await value(
            client.messages.create(**ASK, stream=True, extra_headers=BROKEN)
        )):
            seen.append(text_of(event))

    async def helper(seen):
        manager = client.messages.stream(**ASK, extra_headers=BROKEN)
        if MODE == "async":
            async with manager as stream:
                async for text in stream.text_stream:
                    seen.append(text)
        else:
            with manager as stream:
                for text in stream.text_stream:
                    seen.append(text)

    await breaks_off(anthropic.APIError, WORDS[:3], create)
    return await breaks_off(anthropic.APIError, WORDS[:3], helper)


async def cancel(client):
    async def read(half_way):
        events = await value(client.messages.create(**ASK, stream=True, extra_headers=LONG))
        seen = 0
        async for event in each(events):
            seen += bool(text_of(event))
            if seen == 2:
                half_way()
                await value(events.close())
                break

    await closes(read)


async def plain(client):
    answer = await value(client.messages.create(**ASK, extra_headers=SHORT))
    same([block.text for block in answer.content], ["".join(WORDS)])
    same((answer.stop_reason, answer.usage.output_tokens), ("end_turn", 5))


async def status(client):
    client = client.with_options(max_retries=0)
    return await is_refused(
        anthropic.RateLimitError, lambda: client.messages.create(**ASK, extra_headers=REFUSED)
    )


make = anthropic.AsyncAnthropic if MODE == "async" else anthropic.Anthropic
client = make(api_key="any", base_url=GATEWAY, timeout=20)
run([stream, failure, cancel, plain, status], client, client.close)
