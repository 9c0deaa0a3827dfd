// The cases of tests/clients with the openai package for Node, as python/check.py has them.
//
//     node check.mjs GATEWAY_URL ADMIN_URL FOLDER   (FOLDER holds node_modules)
//
// Prints one line per case: name, ok or FAILED, detail, separated by tabs.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { setTimeout as pause } from 'node:timers/promises';

const [gateway, admin, folder] = process.argv.slice(2);
const { OpenAI } = createRequire(`${folder}/`)('openai');

const CASE_MS = 30_000;
const WORDS = ['The ', 'tide ', 'comes ', 'in ', 'without '];
const ASK = { model: 'tide-1', messages: [{ role: 'user', content: 'hello' }] };
const SLOW = { 'sim-interval': '600ms', 'sim-count': '5' };
const client = new OpenAI({ apiKey: 'any', baseURL: `${gateway}/v1`, timeout: 20_000 });

/** The sum of all series that begin with `series`. */
async function metric(series) {
  const answer = await fetch(`${admin}/metrics`, { signal: AbortSignal.timeout(5000) });
  const lines = (await answer.text()).split('\n').filter((line) => line.startsWith(series));
  assert.ok(lines.length > 0, `no series ${series} in /metrics`);
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
}

const ended = (reason) =>
  metric(`tidegate_streams_ended_total{upstream="simulated",reason="${reason}"`);

async function until(what, holds, ms = 1000) {
  const deadline = Date.now() + ms;
  while (!(await holds())) {
    assert.ok(Date.now() < deadline, `not within ${ms} ms: ${what}`);
    await pause(20);
  }
}

const chat = (headers) => client.chat.completions.create({ ...ASK, stream: true }, { headers });

const cases = {
  async stream() {
    const before = await metric('tidegate_heartbeats_total');
    const chunks = [];
    for await (const chunk of await chat(SLOW)) chunks.push(chunk);
    assert.deepEqual(chunks.map((chunk) => chunk.sim.seq), [1, 2, 3, 4, 5]);
    assert.deepEqual(chunks.map((chunk) => chunk.choices[0].delta.content), WORDS);
    const finish = chunks.map((chunk) => chunk.choices[0].finish_reason);
    assert.deepEqual(finish, [null, null, null, null, 'stop']);
    const beats = (await metric('tidegate_heartbeats_total')) - before;
    assert.ok(beats >= 4, `only ${beats} heartbeats in 4 gaps`);
    return `${beats} heartbeats`;
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

const overdue = async () => {
  await pause(CASE_MS, undefined, { ref: false });
  throw new Error(`not done within ${CASE_MS} ms`);
};

let failed = false;
for (const [name, run] of Object.entries(cases)) {
  let line;
  try {
    line = ['ok', (await Promise.race([run(), overdue()])) ?? ''];
  } catch (error) {
    failed = true;
    line = ['FAILED', String(error).replace(/\s+/g, ' ')];
  }
  console.log([name, ...line].join('\t'));
}
process.exit(failed ? 1 : 0);
