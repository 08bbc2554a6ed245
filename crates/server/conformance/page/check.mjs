// Checks the chat page in a headless Chromium; README.md says how to run it.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { parseArgs } from 'node:util';
import { Browser } from './browser.mjs';
import { startMock } from './mock.mjs';
import { mockChecks } from './mock_checks.mjs';
import { realChecks } from './real_checks.mjs';

const { values } = parseArgs({ options: {
  real: { type: 'string' }, shots: { type: 'string' }, only: { type: 'string', default: '' }, chromium: { type: 'string', default: 'chromium' },
} });

function freePort() {
  return new Promise(done => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

// `billfish serve` with the built-in model, ready when it answers.
async function startReal(binary, { key = null } = {}) {
  const port = await freePort();
  const child = spawn(binary, ['serve', '--port', String(port), '--kv-cache-memory', '256M', ...(key ? ['--api-key', key] : [])], { stdio: 'ignore' });
  const url = `http://127.0.0.1:${port}/`;
  for (let tries = 0; !(await fetch(`${url}health`).then(r => r.ok, () => false)); tries++) {
    if (child.exitCode !== null || tries > 300) throw new Error(`${binary} serve did not start`);
    await new Promise(done => setTimeout(done, 100));
  }
  return { url, close: () => child.kill('SIGTERM') };
}

const start = more => (values.real ? startReal(values.real, more) : startMock(more));
const checks = (values.real ? realChecks : mockChecks).filter(([name]) => name.includes(values.only));
assert.ok(checks.length, `no check is called ${values.only}`);

const browser = await Browser.launch(values.chromium);
const common = await start();
let failed = 0;
// what is expected on the console besides nothing, and how a server of its own is started
for (const [name, check, { expected = null, server = null } = {}] of checks) {
  const own = server ? await start(server) : common;
  const page = await browser.open(own.url);
  try {
    await check(page, { url: own.url, server: own, browser, shots: values.shots });
    assert.deepEqual(page.problems.filter(p => !expected?.test(p)), [], 'the console is empty');
    const outside = page.requests.filter(r => !r.startsWith(own.url) && !r.startsWith('data:') && !r.startsWith('blob:'));
    assert.deepEqual(outside, [], 'nobody else is asked');
    console.log(`ok    ${name}`);
  } catch (e) {
    failed++;
    console.log(`FAIL  ${name}\n      ${e.stack.split('\n').slice(0, 12).join('\n      ')}\n      console: ${page.problems.join('; ')}`);
  }
  await page.close();
  if (own !== common) own.close();
}
await browser.close();
common.close();
console.log(failed ? `${failed} of ${checks.length} failed` : `all ${checks.length} passed`);
process.exit(failed ? 1 : 0);
