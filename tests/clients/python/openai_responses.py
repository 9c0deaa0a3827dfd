"""The cases of tests/clients with the openai package for Python: the Responses API.

    openai_responses.py GATEWAY_URL ADMIN_URL sync|async
"""

import openai

from gateway import (
    BROKEN, GATEWAY, LONG, MODE, REFUSED, SHORT, SLOW, WORDS,
    Heartbeats, breaks_off, closes, each, is_refused, run, same, value,
)

ASK = {"model": "tide-1", "input": "hello"}


def text_of(event):
    return event.delta if event.type == "response.output_text.delta" else ""


async def stream(client):
    with Heartbeats() as beats:
        events = [event async for event in each(await value(
            client.responses.create(**ASK, stream=True, extra_headers=SLOW)
        ))]
    same([text for text in map(text_of, events) if text], WORDS)
    same([event.sequence_number for event in events], list(range(len(events))))
    same(events[-1].type, "response.completed")
    same(events[-1].response.output_text, "".join(WORDS))
    same(events[-1].response.usage.total_tokens, 17)
    return str(beats)


async def failure(client):
    async def create(seen):
        async for event in each(await value(
            client.responses.create(**ASK, stream=True, extra_headers=BROKEN)
        )):
            seen.append(text_of(event))

    async def helper(seen):
        manager = client.responses.stream(**ASK, extra_headers=BROKEN)
        if MODE == "async":
            async with manager as events:
                async for event in events:
                    seen.append(text_of(event))
        else:
            with manager as events:
                for event in events:
                    seen.append(text_of(event))

    await breaks_off(openai.APIError, WORDS[:3], create)
    return await breaks_off(openai.APIError, WORDS[:3], helper)


async def cancel(client):
    async def read(half_way):
        events = await value(client.responses.create(**ASK, stream=True, extra_headers=LONG))
        seen = 0
        async for event in each(events):
            seen += bool(text_of(event))
            if seen == 2:
                half_way()
                await value(events.close())
                break

    await closes(read)


async def plain(client):
    answer = await value(client.responses.create(**ASK, extra_headers=SHORT))
    same(answer.output_text, "".join(WORDS))
    same((answer.status, answer.usage.total_tokens), ("completed", 17))


async def status(client):
    client = client.with_options(max_retries=0)
    return await is_refused(
        openai.RateLimitError, lambda: client.responses.create(**ASK, extra_headers=REFUSED)
    )


make = openai.AsyncOpenAI if MODE == "async" else openai.OpenAI
client = make(api_key="any", base_url=f"{GATEWAY}/v1", timeout=20)
run([stream, failure, cancel, plain, status], client, client.close)
