// The cases of tests/clients with Vercel's `ai` and its providers; MODE is chat, responses or messages.

import assert from 'node:assert/strict';
import {
  BROKEN, LONG, REFUSED, SHORT, SLOW, WORDS, breaksOff, closes, gateway, load, mode, run,
  withHeartbeats,
} from './gateway.mjs';

const { APICallError, generateText, streamText } = load('ai');
const { createOpenAI } = load('@ai-sdk/openai');
const { createAnthropic } = load('@ai-sdk/anthropic');

const options = { apiKey: 'any', baseURL: `${gateway}/v1` };
const model = {
  chat: () => createOpenAI(options).chat('tide-1'),
  responses: () => createOpenAI(options).responses('tide-1'),
  messages: () => createAnthropic(options)('tide-1'),
}[mode]();

const ask = (headers, more = {}) => ({ model, prompt: 'hello', maxRetries: 0, headers, ...more });
/** The stream's parts; `onError` would else write to stderr. */
const parts = (headers, more = {}) => streamText({ onError() {}, ...ask(headers, more) }).fullStream;
const textOf = (part) => (part.type === 'text-delta' ? part.text : '');

await run({
  async stream() {
    const texts = [];
    let finish;
    const beats = await withHeartbeats(async () => {
      for await (const part of parts(SLOW)) {
        if (part.type === 'error') throw part.error;
        if (textOf(part)) texts.push(textOf(part));
        if (part.type === 'finish') finish = part.finishReason;
      }
    });
    assert.deepEqual([texts, finish], [WORDS, 'stop']);
    return beats;
  },

  failure: () => breaksOff(WORDS.slice(0, 3), async (seen) => {
    for await (const part of parts(BROKEN)) {
      // This library hands errors on as parts.
      if (part.type === 'error') throw Object.assign(new Error('told'), { told: part.error });
      seen.push(textOf(part));
    }
  }, ({ told }) => {
    const text = `${told} ${JSON.stringify(told)}`;
    assert.match(text, /before its terminal mark|upstream_truncated|broke off/, text);
  }),

  cancel: () => closes(async (halfWay) => {
    const stop = new AbortController();
    let seen = 0;
    for await (const part of parts(LONG, { abortSignal: stop.signal })) {
      seen += textOf(part) ? 1 : 0;
      if (seen === 2 && !stop.signal.aborted) {
        await halfWay();
        stop.abort();
      }
    }
  }),

  async plain() {
    const { text, usage } = await generateText(ask(SHORT));
    assert.deepEqual([text, usage.totalTokens], [WORDS.join(''), 17]);
  },

  async status() {
    const refused = (error) => APICallError.isInstance(error) && error.statusCode === 429;
    await assert.rejects(generateText(ask(REFUSED)), refused);
  },
});
