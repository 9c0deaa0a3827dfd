"""The cases of tests/clients with the openai package for Python: chat completions and what is beside.

    openai_chat.py GATEWAY_URL ADMIN_URL sync|async|http2

The cases are written once for the three modes: what a call gives is awaited if it can be.
"""

import openai

from gateway import (
    GATEWAY, MODE, PROMPT, SLOW, WORDS, Heartbeats, each, ended, metric, run, same, until, value,
)

ASK = {"model": "tide-1", "messages": PROMPT}


def make_client():
    options = {"api_key": "any", "base_url": f"{GATEWAY}/v1", "timeout": 20}
    if MODE == "async":
        return openai.AsyncOpenAI(**options)
    if MODE == "http2":
        http_client = openai.DefaultHttpxClient(http1=False, http2=True)
        return openai.OpenAI(http_client=http_client, **options)
    return openai.OpenAI(**options)


async def stream(client):
    chunks = []
    with Heartbeats() as beats:
        async for chunk in each(await value(
            client.chat.completions.create(**ASK, stream=True, extra_headers=SLOW)
        )):
            chunks.append(chunk)
    same([chunk.model_extra["sim"]["seq"] for chunk in chunks], [1, 2, 3, 4, 5])
    same([chunk.choices[0].delta.content for chunk in chunks], WORDS)
    same([chunk.choices[0].finish_reason for chunk in chunks], [None] * 4 + ["stop"])
    return str(beats)


async def failure(client):
    truncated = ended("upstream_truncated")
    headers = {"sim-fault": "fin", "sim-fault-after": "3", "sim-interval": "20ms"}
    seen = []
    try:
        async for chunk in each(await value(
            client.chat.completions.create(**ASK, stream=True, extra_headers=headers)
        )):
            seen.append(chunk.model_extra["sim"]["seq"])
    except openai.APIError as error:
        same(seen, [1, 2, 3])
        same(error.code, "upstream_truncated")
        await until("ended once, not retried", lambda: ended("upstream_truncated") == truncated + 1)
        return type(error).__name__
    raise AssertionError(f"silent success after {seen}")


async def cancel(client):
    # With HTTP/2, closing a stream tells nobody: httpx keeps the connection and sends no RST_STREAM.
    # What the gateway can notice is the end of the client's connection.
    if MODE == "http2":
        client = make_client()
    closed = ended("client_closed")
    headers = {"sim-interval": "300ms", "sim-count": "50"}
    answer = await value(client.chat.completions.create(**ASK, stream=True, extra_headers=headers))
    seen = 0
    async for _ in each(answer):
        seen += 1
        if seen == 2:
            same(metric("tidegate_streams_live"), 1)
            await value(answer.close())
            if MODE == "http2":
                client.close()
            break
    same(seen, 2)
    await until("counted as client_closed", lambda: ended("client_closed") == closed + 1)
    await until("no stream lives", lambda: metric("tidegate_streams_live") == 0)


async def plain(client):
    completed = ended("completed")
    answer = await value(
        client.chat.completions.create(**ASK, extra_headers={"sim-count": "5"})
    )
    same(answer.choices[0].message.content, "".join(WORDS))
    same(answer.choices[0].finish_reason, "stop")
    same(answer.usage.total_tokens, 17)
    await until("counted as completed", lambda: ended("completed") == completed + 1)


async def models(client):
    same([model.id async for model in each(await value(client.models.list()))],
         ["tide-1", "tide-1-mini"])


async def status(client):
    client = client.with_options(max_retries=0)
    try:
        await value(client.chat.completions.create(**ASK, extra_headers={"sim-status": "429"}))
    except openai.RateLimitError as error:
        same(error.status_code, 429)
        return type(error).__name__
    raise AssertionError("a 429 was taken for success")


async def completions(client):
    answer = await value(client.completions.create(
        model="tide-1", prompt="hello", stream=True, extra_headers=SLOW | {"sim-interval": "300ms"}
    ))
    choices = [chunk.choices[0] async for chunk in each(answer)]
    same([choice.text for choice in choices], WORDS)
    same(choices[-1].finish_reason, "stop")


async def embeddings(client):
    answer = await value(client.embeddings.create(
        model="tide-1", input=["one", "two"], encoding_format="float"
    ))
    same([(item.index, len(item.embedding)) for item in answer.data], [(0, 8), (1, 8)])
    same(answer.data[0].embedding[:2], [0.5, -0.25])


CASES = [stream, failure, cancel, plain, models, status, completions, embeddings]

client = make_client()
run(CASES, client, client.close)
