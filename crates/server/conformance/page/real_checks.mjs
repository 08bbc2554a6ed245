// Checks against `billfish serve` with the built-in model. What it says is its own affair; what the page makes of it is not.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { ANSWER, act, ask, bodyOf, say, settled, watchGrowth } from './acts.mjs';
import { sleep } from './browser.mjs';

const TALE = 'Tell me of the fox and the golden bird.';

async function withSettings(page, settings) {
  await page.run(s => localStorage.setItem('billfish.settings', JSON.stringify(s)), settings);
  await page.reload();
}

// Requests that the server runs, by its own count.
async function runningAt(url) {
  const text = await (await fetch(`${url}metrics`)).text();
  return Number(/^billfish_num_requests_running(?:\{.*\})? (\S+)$/m.exec(text)[1]);
}

export const realChecks = [
  ['streams token by token, with a probability for each', async page => {
    await withSettings(page, { max_completion_tokens: 120 });
    const lengths = await watchGrowth(page);
    await ask(page, TALE);
    assert.ok((await lengths()).length > 5, 'it grew in steps');
    const text = await bodyOf(page);
    assert.ok(text.length > 50, text);
    const facts = await page.text(`${ANSWER} .facts`);
    const count = Number(/^(\d+) tokens · [\d.]+ tokens\/s · first after/.exec(facts)[1]);
    await act(page, 'odds');
    const tokens = await page.run(() => [...document.querySelectorAll('.token')].map(t => t.textContent));
    assert.ok(count - tokens.length <= 1, `${tokens.length} of ${count}: at most the end has no text`);
    await page.hover('.token:nth-child(12)');
    await page.until(() => !document.getElementById('tip').hidden);
    const rows = await page.run(() => document.querySelectorAll('#tip tr').length);
    assert.ok(rows === 5 || rows === 6, `${rows} likely tokens`);
  }],

  ['stops, and the server with it', async (page, { url }) => {
    await withSettings(page, { max_completion_tokens: 900, temperature: 1.2 });
    await say(page, TALE);
    await page.until(s => document.querySelector(s)?.querySelector(':scope > .body').textContent.length > 10, ANSWER);
    assert.equal(await runningAt(url), 1);
    await page.press('Escape');
    await settled(page);
    assert.match(await page.text(`${ANSWER} .facts`), /stopped/);
    for (let tries = 0; (await runningAt(url)) > 0; tries++) {
      assert.ok(tries < 50, 'the server goes on');
      await sleep(50);
    }
  }],

  ['replays its seed bit by bit', async page => {
    await withSettings(page, { max_completion_tokens: 100, temperature: 1 });
    await ask(page, TALE);
    await act(page, 'replay');
    const said = await page.until(() => /^(Same|Not|Replay failed).*/.exec(document.querySelector('.replay').textContent)?.[0]);
    assert.match(said, /^Same answer: all \d+ characters are equal, and so are all probabilities$/);
    const first = await bodyOf(page);
    await act(page, 'regenerate');
    await settled(page);
    assert.notEqual(await bodyOf(page), first, 'another seed, another answer');
  }],

  ['follows the conversation, and keeps it', async page => {
    await withSettings(page, { max_completion_tokens: 30, system: 'You tell tales.' });
    await ask(page, TALE);
    await ask(page, 'And then?');
    const shown = await page.text('#log');
    await page.reload();
    assert.equal(await page.text('#log'), shown);
  }],

  ['says what the server refuses', async page => {
    await page.until(() => document.getElementById('model').value);
    await page.run(t => {
      document.getElementById('prompt').value = t;
      document.getElementById('composer').requestSubmit();
    }, 'far too long '.repeat(3000));
    await page.until(() => document.querySelector('article.assistant'));
    await settled(page);
    assert.match(await page.text(`${ANSWER} .problem`), /1024/);
  }, { expected: /400/ }],

  ['inspects', async page => {
    await page.click('#tab-inspector');
    await page.until(() => /What doctor says/.test(document.getElementById('inspector').textContent));
    const text = await page.text('#inspector');
    for (const part of ['requests running', 'of the cache in use', 'tales-6m-w4-sym-g128', 'model.layers.*.mlp.down_proj', '×6', '4-bit, group 128, symmetric', 'Nothing is wrong with the folder.', 'mistral.rs']) {
      assert.ok(text.includes(part), `${part} in ${text}`);
    }
    assert.equal(await page.run(() => document.querySelectorAll('.grid tbody td').length), 42);
  }],

  ['is sent with a policy that holds', async (page, { url }) => {
    const { headers } = await fetch(url);
    assert.match(headers.get('content-security-policy'), /^default-src 'none'; connect-src 'self';/);
    await page.run(() => {
      const script = document.createElement('script');
      script.textContent = 'globalThis.acted = true';
      const image = document.createElement('img');
      image.setAttribute('onerror', 'globalThis.acted = true');
      image.src = 'nothing.png';
      document.body.append(script, image);
    });
    await sleep(200);
    assert.equal(await page.run(() => globalThis.acted), undefined);
    assert.ok(page.problems.some(p => /Content Security Policy/.test(p)));
  }, { expected: /Content Security Policy/ }],

  ['asks for a key', async page => {
    await page.until(() => document.getElementById('key').open);
    await page.type('secret');
    await page.press('Enter');
    await page.until(() => document.getElementById('model').value);
    await withSettings(page, { max_completion_tokens: 10 });
    await ask(page, TALE);
    assert.equal(await page.text(`${ANSWER} .problem`), '');
  }, { expected: /401/, server: { key: 'secret' } }],

  ['sits for its pictures', async (page, { shots }) => {
    if (!shots) return;
    const shoot = name => page.screenshot(join(shots, `page-${name}.png`));
    await withSettings(page, { max_completion_tokens: 140, seed: 6 });
    await ask(page, TALE);
    await act(page, 'replay');
    await page.until(() => /^Same/.test(document.querySelector('.replay').textContent));
    await ask(page, 'What did the king say?');
    await act(page, 'odds');
    await page.hover(`${ANSWER} .token:nth-child(40)`);
    await page.until(() => !document.getElementById('tip').hidden);
    await shoot('light');
    await page.scheme('dark');
    await shoot('dark');
    await page.scheme('light');
    await act(page, 'odds');
    await page.click('#new');
    await page.until(() => !document.querySelector('article'));
    // slowed down, so that the picture is of the middle
    await page.send('Network.emulateNetworkConditions', { offline: false, latency: 0, downloadThroughput: 40000, uploadThroughput: -1 });
    await say(page, 'Once upon a time there was a miller.');
    await page.until(s => document.querySelector(s)?.querySelector(':scope > .body').textContent.length > 200, ANSWER);
    await shoot('streaming');
    await settled(page);
    await page.click('#tab-inspector');
    await page.until(() => document.querySelector('.grid'));
    await page.size(1200, 1340);
    await shoot('inspector');
  }],
];
