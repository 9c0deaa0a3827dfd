// What the Node checks of tests/clients share: the gateway's metrics, and how the cases are run.
//
//     node CHECK GATEWAY_URL ADMIN_URL FOLDER MODE   (FOLDER holds node_modules)
//
// Prints one line per case: name, ok or FAILED, detail, separated by tabs.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { setTimeout as pause } from 'node:timers/promises';

export const [gateway, admin, folder, mode] = process.argv.slice(2);
export const load = createRequire(`${folder}/`);

const CASE_MS = 30_000;
export const WORDS = ['The ', 'tide ', 'comes ', 'in ', 'without '];
// What the simulated upstream is asked for in the cases of the same names.
export const SLOW = { 'sim-interval': '600ms', 'sim-count': '5' };
export const BROKEN = { 'sim-fault': 'fin', 'sim-fault-after': '3', 'sim-interval': '20ms' };
export const LONG = { 'sim-interval': '300ms', 'sim-count': '50' };
export const SHORT = { 'sim-count': '5' };
export const REFUSED = { 'sim-status': '429' };

/** The sum of all series that begin with `series`. */
export async function metric(series) {
  const answer = await fetch(`${admin}/metrics`, { signal: AbortSignal.timeout(5000) });
  const lines = (await answer.text()).split('\n').filter((line) => line.startsWith(series));
  assert.ok(lines.length > 0, `no series ${series} in /metrics`);
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
}

export const ended = (reason) =>
  metric(`tidegate_streams_ended_total{upstream="simulated",reason="${reason}"`);

export async function until(what, holds, ms = 1000) {
  const deadline = Date.now() + ms;
  while (!(await holds())) {
    assert.ok(Date.now() < deadline, `not within ${ms} ms: ${what}`);
    await pause(20);
  }
}

/** Reads a slow stream by `read`; each of its four gaps has a heartbeat at least. */
export async function withHeartbeats(read) {
  const before = await metric('tidegate_heartbeats_total');
  await read();
  const beats = (await metric('tidegate_heartbeats_total')) - before;
  assert.ok(beats >= 4, `only ${beats} heartbeats in 4 gaps`);
  return `${beats} heartbeats`;
}

/** `read` has to add the first words to its list and then throw what `check` looks at. */
export async function breaksOff(words, read, check) {
  const before = await ended('upstream_truncated');
  const seen = [];
  try {
    await read(seen);
  } catch (error) {
    check(error);
    assert.equal(seen.join(''), words.join(''));
    const once = async () => (await ended('upstream_truncated')) === before + 1;
    await until('ended once, not retried', once);
    return error.constructor.name;
  }
  throw new Error(`silent success after ${seen}`);
}

/** `read` has to read two pieces of a long stream, call what it is given, and leave. */
export async function closes(read) {
  const before = await ended('client_closed');
  let halfWay = false;
  await read(async () => {
    assert.equal(await metric('tidegate_streams_live'), 1);
    halfWay = true;
  });
  assert.ok(halfWay, 'the stream ended early');
  await until('counted as client_closed', async () => (await ended('client_closed')) === before + 1);
  await until('no stream lives', async () => (await metric('tidegate_streams_live')) === 0);
}

const overdue = async () => {
  await pause(CASE_MS, undefined, { ref: false });
  throw new Error(`not done within ${CASE_MS} ms`);
};

/** Runs every case and ends the program. */
export async function run(cases) {
  let failed = false;
  for (const [name, one] of Object.entries(cases)) {
    let line;
    try {
      line = ['ok', (await Promise.race([one(), overdue()])) ?? ''];
    } catch (error) {
      failed = true;
      line = ['FAILED', String(error).replace(/\s+/g, ' ')];
    }
    console.log([name, ...line].join('\t'));
  }
  process.exit(failed ? 1 : 0);
}
