"""The cases of tests/clients with LangChain for Python.

    langchain_chat.py GATEWAY_URL ADMIN_URL chat|responses|messages
"""

import anthropic
import openai
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

from gateway import (
    BROKEN, GATEWAY, LONG, MODE, REFUSED, SHORT, SLOW, WORDS,
    Heartbeats, breaks_off, closes, is_refused, run, same,
)

ERRORS = anthropic if MODE == "messages" else openai


def model(headers):
    options = {"model": "tide-1", "api_key": "any", "max_retries": 0, "timeout": 20,
               "default_headers": headers}
    if MODE == "messages":
        return ChatAnthropic(base_url=GATEWAY, **options)
    return ChatOpenAI(base_url=f"{GATEWAY}/v1", use_responses_api=MODE == "responses", **options)


def text_of(message):
    text = message.text
    return text if isinstance(text, str) else text()


async def stream(_):
    with Heartbeats() as beats:
        texts = [text_of(chunk) for chunk in model(SLOW).stream("hello")]
    same([text for text in texts if text], WORDS)
    return str(beats)


async def failure(_):
    async def read(seen):
        for chunk in model(BROKEN).stream("hello"):
            seen.append(text_of(chunk))

    async def read_async(seen):
        async for chunk in model(BROKEN).astream("hello"):
            seen.append(text_of(chunk))

    await breaks_off(ERRORS.APIError, WORDS[:3], read)
    return await breaks_off(ERRORS.APIError, WORDS[:3], read_async)


async def cancel(_):
    async def read(half_way):
        seen, chunks = 0, model(LONG).stream("hello")
        for chunk in chunks:
            seen += bool(text_of(chunk))
            if seen == 2:
                half_way()
                chunks.close()
                break

    await closes(read)


async def plain(_):
    answer = model(SHORT).invoke("hello")
    same(text_of(answer), "".join(WORDS))
    same(answer.usage_metadata["total_tokens"], 17)


async def status(_):
    return await is_refused(ERRORS.RateLimitError, lambda: model(REFUSED).invoke("hello"))


run([stream, failure, cancel, plain, status], None)
