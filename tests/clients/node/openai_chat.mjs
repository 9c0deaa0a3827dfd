// The cases of tests/clients with the openai package for Node, as python/openai_chat.py has them.

import assert from 'node:assert/strict';
import {
  SLOW, WORDS, ended, gateway, load, metric, run, until, withHeartbeats,
} from './gateway.mjs';

const { OpenAI } = load('openai');
const ASK = { model: 'tide-1', messages: [{ role: 'user', content: 'hello' }] };
const client = new OpenAI({ apiKey: 'any', baseURL: `${gateway}/v1`, timeout: 20_000 });

const chat = (headers) => client.chat.completions.create({ ...ASK, stream: true }, { headers });

const cases = {
  async stream() {
    const chunks = [];
    const beats = await withHeartbeats(async () => {
      for await (const chunk of await chat(SLOW)) chunks.push(chunk);
    });
    assert.deepEqual(chunks.map((chunk) => chunk.sim.seq), [1, 2, 3, 4, 5]);
    assert.deepEqual(chunks.map((chunk) => chunk.choices[0].delta.content), WORDS);
    const finish = chunks.map((chunk) => chunk.choices[0].finish_reason);
    assert.deepEqual(finish, [null, null, null, null, 'stop']);
    return beats;
  },

  async failure() {
    const before = await ended('upstream_truncated');
    const seen = [];
    try {
      const headers = { 'sim-fault': 'fin', 'sim-fault-after': '3', 'sim-interval': '20ms' };
      for await (const chunk of await chat(headers)) seen.push(chunk.sim.seq);
    } catch (error) {
      assert.ok(error instanceof OpenAI.APIError, `no APIError: ${error}`);
      assert.deepEqual(seen, [1, 2, 3]);
      assert.equal(error.code, 'upstream_truncated');
      const once = async () => (await ended('upstream_truncated')) === before + 1;
      await until('ended once, not retried', once);
      return error.constructor.name;
    }
    throw new Error(`silent success after ${seen}`);
  },

  async cancel() {
    const before = await ended('client_closed');
    let seen = 0;
    const stream = await chat({ 'sim-interval': '300ms', 'sim-count': '50' });
    for await (const _ of stream) {
      seen += 1;
      if (seen === 2) {
        assert.equal(await metric('tidegate_streams_live'), 1);
        stream.controller.abort();
        break;
      }
    }
    assert.equal(seen, 2);
    await until('counted as client_closed', async () => (await ended('client_closed')) === before + 1);
    await until('no stream lives', async () => (await metric('tidegate_streams_live')) === 0);
  },

  async plain() {
    const before = await ended('completed');
    const answer = await client.chat.completions.create(ASK, { headers: { 'sim-count': '5' } });
    assert.equal(answer.choices[0].message.content, WORDS.join(''));
    assert.equal(answer.choices[0].finish_reason, 'stop');
    assert.equal(answer.usage.total_tokens, 17);
    await until('counted as completed', async () => (await ended('completed')) === before + 1);
  },

  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.deepEqual(ids, ['tide-1', 'tide-1-mini']);
  },

  async status() {
    const headers = { 'sim-status': '429' };
    try {
      await client.chat.completions.create(ASK, { headers, maxRetries: 0 });
    } catch (error) {
      assert.ok(error instanceof OpenAI.RateLimitError, `no RateLimitError: ${error}`);
      assert.equal(error.status, 429);
      return error.constructor.name;
    }
    throw new Error('a 429 was taken for success');
  },

  async completions() {
    const asked = { model: 'tide-1', prompt: 'hello', stream: true };
    const headers = { 'sim-interval': '300ms', 'sim-count': '5' };
    const choices = [];
    const stream = await client.completions.create(asked, { headers });
    for await (const chunk of stream) choices.push(chunk.choices[0]);
    assert.deepEqual(choices.map((choice) => choice.text), WORDS);
    assert.equal(choices.at(-1).finish_reason, 'stop');
  },

  async embeddings() {
    const asked = { model: 'tide-1', input: ['one', 'two'], encoding_format: 'float' };
    const { data } = await client.embeddings.create(asked);
    assert.deepEqual(data.map((item) => [item.index, item.embedding.length]), [[0, 8], [1, 8]]);
    assert.deepEqual(data[0].embedding.slice(0, 2), [0.5, -0.25]);
  },
};

await run(cases);
