// The cases of tests/clients with @anthropic-ai/sdk.

import assert from 'node:assert/strict';
import {
  BROKEN, LONG, REFUSED, SHORT, SLOW, WORDS, breaksOff, closes, gateway, load, run, withHeartbeats,
} from './gateway.mjs';

const sdk = load('@anthropic-ai/sdk');
const Anthropic = sdk.Anthropic ?? sdk.default;
const ASK = { model: 'tide-1', max_tokens: 99, messages: [{ role: 'user', content: 'hello' }] };
const client = new Anthropic({ apiKey: 'any', baseURL: gateway, timeout: 20_000 });

const create = (headers) => client.messages.create({ ...ASK, stream: true }, { headers });
const isDelta = (event) => event.type === 'content_block_delta';
const truncated = (error) => {
  assert.ok(error instanceof Anthropic.APIError, `no APIError: ${error}`);
  assert.match(String(error), /upstream_truncated/);
};
const read = async (stream, seen) => {
  for await (const event of stream) if (isDelta(event)) seen.push(event.delta.text);
};

await run({
  async stream() {
    const events = [];
    const beats = await withHeartbeats(async () => {
      for await (const event of await create(SLOW)) events.push(event);
    });
    assert.deepEqual(events.filter(isDelta).map((event) => event.delta.text), WORDS);
    assert.equal(events[0].message.usage.input_tokens, 12);
    assert.deepEqual([events.at(-2).usage.output_tokens, events.at(-1).type], [5, 'message_stop']);
    return beats;
  },

  async failure() {
    const first = WORDS.slice(0, 3);
    await breaksOff(first, async (seen) => read(await create(BROKEN), seen), truncated);
    const helper = (seen) => read(client.messages.stream(ASK, { headers: BROKEN }), seen);
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
    const answer = await client.messages.create(ASK, { headers: SHORT });
    assert.deepEqual(answer.content.map((block) => block.text), [WORDS.join('')]);
    assert.deepEqual([answer.stop_reason, answer.usage.output_tokens], ['end_turn', 5]);
  },

  async status() {
    const asked = client.messages.create(ASK, { headers: REFUSED, maxRetries: 0 });
    await assert.rejects(asked, Anthropic.RateLimitError);
  },
});
