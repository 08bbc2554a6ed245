// Checks the chat page in a headless Chromium: `node check.mjs [--real URL_OR_BINARY] [--shots FOLDER] [--only WORD]`.
// Without a server it checks against one that says what it is told (mock.mjs).

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { parseArgs } from 'node:util';
import { Browser } from './browser.mjs';
import { startMock } from './mock.mjs';
import { mockChecks } from './mock_checks.mjs';
import { realChecks } from './real_checks.mjs';

const { values } = parseArgs({ options: {
  real: { type: 'string' }, shots: { type: 'string' }, only: { type: 'string' }, chromium: { type: 'string', default: 'chromium' },
} });

// A server of the binary's on a port that the system chooses, ready when it answers.
async function startReal(binary) {
  if (/^https?:/.test(binary)) return { url: binary, close() {} };
  const port = 18000 + (process.pid % 2000);
  const child = spawn(binary, ['serve', '--port', String(port)], { stdio: ['ignore', 'ignore', 'inherit'] });
  const url = `http://127.0.0.1:${port}/`;
  for (let tries = 0; ; tries++) {
    if (await fetch(`${url}health`).then(r => r.ok, () => false)) break;
    if (child.exitCode !== null || tries > 300) throw new Error(`${binary} serve did not start`);
    await new Promise(done => setTimeout(done, 100));
  }
  return { url, close: () => child.kill('SIGTERM') };
}

const browser = await Browser.launch(values.chromium);
const server = values.real ? await startReal(values.real) : await startMock();
let failed = 0;
for (const [name, check, expected = []] of values.real ? realChecks : mockChecks) {
  if (values.only && !name.includes(values.only)) continue;
  const own = typeof expected === 'function' ? await startMock(expected()) : null;
  const { url } = own ?? server;
  const page = await browser.open(url);
  try {
    await check(page, { url, server: own ?? server, browser, shots: values.shots });
    const odd = page.problems.filter(p => !(typeof expected === 'function' ? [/401|404/] : expected).some(e => e.test(p)));
    assert.deepEqual(odd, [], 'the console is empty');
    const outside = page.requests.filter(r => !r.startsWith(url) && !r.startsWith('data:') && !r.startsWith('blob:'));
    assert.deepEqual(outside, [], 'nobody else is asked');
    console.log(`ok    ${name}`);
  } catch (e) {
    failed++;
    console.log(`FAIL  ${name}\n      ${e.stack.split('\n').slice(0, 12).join('\n      ')}\n      console: ${page.problems.join('; ')}`);
  }
  await page.close();
  own?.close();
}
await browser.close();
server.close();
console.log(failed ? `${failed} failed` : 'all passed');
process.exit(failed ? 1 : 0);
