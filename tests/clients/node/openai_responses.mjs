// The cases of tests/clients with the openai package for Node: the Responses API.

import assert from 'node:assert/strict';
import {
  BROKEN, LONG, REFUSED, SHORT, SLOW, WORDS, breaksOff, closes, gateway, load, run, withHeartbeats,
} from './gateway.mjs';

const { OpenAI } = load('openai');
const ASK = { model: 'tide-1', input: 'hello' };
const client = new OpenAI({ apiKey: 'any', baseURL: `${gateway}/v1`, timeout: 20_000 });

const create = (headers) => client.responses.create({ ...ASK, stream: true }, { headers });
const isDelta = (event) => event.type === 'response.output_text.delta';
const truncated = (error) => {
  assert.ok(error instanceof OpenAI.APIError, `no APIError: ${error}`);
  assert.equal(error.code, 'upstream_truncated');
};
const read = async (stream, seen) => {
  for await (const event of stream) if (isDelta(event)) seen.push(event.delta);
};

await run({
  async stream() {
    const events = [];
    const beats = await withHeartbeats(async () => {
      for await (const event of await create(SLOW)) events.push(event);
    });
    assert.deepEqual(events.filter(isDelta).map((event) => event.delta), WORDS);
    assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
    assert.equal(events.at(-1).type, 'response.completed');
    assert.equal(events.at(-1).response.usage.total_tokens, 17);
    return beats;
  },

  async failure() {
    const first = WORDS.slice(0, 3);
    await breaksOff(first, async (seen) => read(await create(BROKEN), seen), truncated);
    const helper = (seen) => read(client.responses.stream(ASK, { headers: BROKEN }), seen);
    return breaksOff(first, helper, truncated);
  },

  cancel: () => closes(async (halfWay) => {
    const stream = await create(LONG);
    let seen = 0;
    for await (const event of stream) {
      seen += isDelta(event) ? 1 : 0;
      if (seen === 2) {
        await halfWay();
        stream.controller.abort();
        break;
      }
    }
  }),

  async plain() {
    const answer = await client.responses.create(ASK, { headers: SHORT });
    assert.equal(answer.output_text, WORDS.join(''));
    assert.deepEqual([answer.status, answer.usage.total_tokens], ['completed', 17]);
  },

  async status() {
    const asked = client.responses.create(ASK, { headers: REFUSED, maxRetries: 0 });
    await assert.rejects(asked, OpenAI.RateLimitError);
  },
});
