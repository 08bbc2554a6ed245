// Checks that need a server which says what it is told. Each is [name, check, what it needs].

import assert from 'node:assert/strict';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ANSWER, PROMPT, act, ask, bodyOf, focused, say, settled, watchGrowth } from './acts.mjs';
import { sleep } from './browser.mjs';

const MARKDOWN = `# Title with *stress*

A **bold** word, \`code\`, ~~gone~~, [a link](https://example.org/x "t") and https://example.org/bare.
Second line

- one
- two
  1. inner
  2. inner too
- [x] done

> quoted

| a | b |
|:--|--:|
| 1 | \`x|y\` |

\`\`\`rust
fn main() { println!("<b>&amp;</b>"); }
\`\`\`

---
end`;

const HOSTILE = `<img src=x onerror="alert(1)"> <script>alert(2)</script> </script><script>alert(3)</script>

[click](javascript:alert(4)) [data](data:text/html,<script>alert(5)</script>) <javascript:alert(6)> [x](JaVaScRiPt:alert(7)) [y]( javascript:alert(8))

![pic](https://evil.example/pixel.png) ![pic](x" onerror="alert(9))

\`\`\`"><img src=x onerror=alert(10)>
</code></pre><img src=x onerror=alert(11)>
\`\`\`

| <img src=x onerror=alert(12)> | b |
|---|---|
| <iframe src="https://evil.example"> | <svg onload=alert(13)> |

# <a href="javascript:alert(14)">x</a>

[vb](vbscript:x) [ftp](ftp://evil.example) [ok](https://fine.example/?q="onmouseover="alert(15))`;

export const mockChecks = [
  ['streams token by token', async page => {
    const lengths = await watchGrowth(page);
    await ask(page, '!slow one two three four five six');
    assert.ok((await lengths()).length > 5, 'it grew in steps');
    assert.equal((await bodyOf(page)).trim(), 'one two three four five six');
    assert.match(await page.text(`${ANSWER} .facts`), /^\d+ tokens · \d+\.\d tokens\/s · first after \d\.\d\d s · prompt 10 · seed \d+$/);
    const [body] = page.bodies;
    assert.deepEqual(Object.keys(body).sort(), ['logprobs', 'messages', 'model', 'seed', 'stream', 'stream_options', 'top_logprobs']);
  }],

  ['stops, and keeps what came', async (page, { server }) => {
    await say(page, '!slow a b c d e f g h i j k l m n o p');
    await page.until(s => document.querySelector(s)?.querySelector(':scope > .body').textContent.length > 3, ANSWER);
    assert.equal(await page.run(() => document.getElementById('log').getAttribute('aria-busy')), 'true');
    const offered = await page.run(s => [...document.querySelectorAll(`${s} [data-act]`)].filter(b => !b.hidden && !b.disabled).map(b => b.dataset.act), ANSWER);
    assert.deepEqual(offered, [], 'nothing is offered that needs the whole answer');
    await page.click('#stop');
    await settled(page);
    const text = await bodyOf(page);
    assert.ok(text.length > 3 && text.length < 25, text);
    assert.match(await page.text(`${ANSWER} .facts`), /stopped/);
    await sleep(300);
    assert.equal(server.counts.running, 0, 'the server sees that nobody listens');
    await page.reload();
    assert.equal(await bodyOf(page), text);
  }],

  ['edits and regenerates in branches', async page => {
    await ask(page, '!words 12');
    const first = await bodyOf(page);
    await act(page, 'regenerate');
    await settled(page);
    const second = await bodyOf(page);
    assert.notEqual(first, second, 'another seed, another answer');
    assert.match(await page.text(ANSWER), /2 \/ 2/);
    await page.click(`${ANSWER} [aria-label="Version before"]`);
    assert.equal(await bodyOf(page), first);
    await page.click('article.user [data-act="edit"]');
    await page.run(() => { document.querySelector('article.user textarea').value = 'other words'; });
    await page.click('article.user .main');
    await page.until(() => document.querySelector('article.user > .body').textContent === 'other words');
    await settled(page);
    assert.equal((await bodyOf(page)).trim(), 'other words');
    await page.click('article.user [aria-label="Version before"]');
    assert.match(await page.text('article.user'), /!words 12/);
    assert.equal(await bodyOf(page), second, 'the newest answer of that branch');
  }],

  ['sends the conversation so far', async page => {
    await ask(page, 'first');
    await ask(page, 'second');
    assert.deepEqual(page.bodies.at(-1).messages, [{ role: 'user', content: 'first' }, { role: 'assistant', content: 'first' }, { role: 'user', content: 'second' }]);
  }],

  ['keeps its history, finds, renames and deletes', async page => {
    await ask(page, 'the story of a fox');
    await page.click('#new');
    await ask(page, 'a recipe for soup');
    await page.reload();
    assert.match(await page.text('#log'), /recipe for soup/);
    const titles = () => page.run(() => [...document.querySelectorAll('#list .open')].map(b => b.textContent));
    assert.deepEqual(await titles(), ['a recipe for soup', 'the story of a fox']);
    await page.run(() => document.getElementById('filter').focus());
    await page.type('FOX');
    assert.deepEqual(await titles(), ['the story of a fox']);
    await page.click('#list .open');
    await page.until(() => /story of a fox/.test(document.querySelector('article.user')?.textContent));
    await page.hover('#list li');
    await page.click('#list [aria-label^="Rename"]');
    await page.type('Fox');
    await page.press('Enter');
    await page.until(() => document.querySelector('#list .open')?.textContent === 'Fox');
    await page.click('#list [aria-label="Delete Fox"]');
    await page.until(() => document.getElementById('question').open);
    await page.click('#question-yes');
    await page.until(() => !document.querySelector('article'));
    await page.reload();
    await page.until(() => document.getElementById('list').childElementCount === 1);
    assert.deepEqual(await titles(), ['a recipe for soup']);
  }],

  ['exports and imports', async (page, { browser, url }) => {
    await ask(page, '!words 20');
    const text = await bodyOf(page);
    await page.click('#export');
    let name;
    for (let i = 0; !name && i < 100; i++) {
      await sleep(30);
      name = readdirSync(browser.folder).find(f => /^billfish-chats-.*\.json$/.test(f));
    }
    const path = join(browser.folder, name);
    const file = JSON.parse(readFileSync(path, 'utf8'));
    assert.equal(file.format, 'billfish-chats');
    assert.equal(file.conversations[0].messages[1].content, text);
    const other = await browser.open(url);
    await other.setFiles('#file', [path]);
    await other.until(() => /1 of 1 conversations added/.test(document.getElementById('notice').textContent));
    await other.click('#list .open');
    await other.until(() => document.querySelector('article.assistant'));
    assert.equal(await bodyOf(other), text);
    await act(other, 'replay');
    await other.until(() => /^Same answer/.test(document.querySelector('.replay').textContent));
    await other.setFiles('#file', [path]);
    await other.until(() => /0 of 1/.test(document.getElementById('notice').textContent));
    Object.assign(file.conversations[0], { id: 'other', leaf: null });
    Object.assign(file.conversations[0].messages[1].request, { messages: [{ role: 'user', content: 'foreign' }], tools: [], temperature: 0.25 });
    writeFileSync(join(browser.folder, 'foreign.json'), JSON.stringify(file));
    await other.setFiles('#file', [join(browser.folder, 'foreign.json')]);
    await other.until(() => document.getElementById('list').childElementCount === 2);
    await other.run(() => [...document.querySelectorAll('#list li:not(.now) .open')].at(-1).click());
    await other.until(() => document.querySelector('.replay')?.textContent === '');
    await act(other, 'replay');
    await other.until(() => /^Same answer/.test(document.querySelector('.replay').textContent));
    const { messages, tools, temperature } = other.bodies.at(-1);
    assert.deepEqual([messages, tools, temperature], [[{ role: 'user', content: '!words 20' }], undefined, 0.25], 'a file cannot put other words into a request');
    file.conversations[0].messages[0].parent = file.conversations[0].messages[1].id;
    const bad = join(browser.folder, 'bad.json');
    for (const [hostile, why] of [[JSON.stringify(file), /does not stand before/], ['{', /no JSON/], ['{"format": "x"}', /no export/]]) {
      writeFileSync(bad, hostile);
      await other.setFiles('#file', [bad]);
      await other.until(w => new RegExp(w).test(document.getElementById('notice').textContent), why.source);
    }
    assert.deepEqual(other.problems, []);
    await other.close();
  }],

  ['renders Markdown', async page => {
    await ask(page, MARKDOWN);
    const found = await page.run(s => {
      const body = document.querySelector(s).querySelector(':scope > .body');
      const texts = q => [...body.querySelectorAll(q)].map(n => n.textContent);
      return {
        h1: texts('h1'), em: texts('em'), strong: texts('strong'), del: texts('del'), links: [...body.querySelectorAll('a')].map(a => [a.getAttribute('href'), a.rel, a.target]),
        li: texts('ul > li').length, ol: texts('ol > li'), box: body.querySelector('input[type=checkbox]').checked, quote: texts('blockquote'), th: texts('th'), td: texts('td'),
        align: body.querySelector('td:last-child').className, code: texts('pre code'), language: texts('figcaption span'), hr: body.querySelectorAll('hr').length, br: body.querySelectorAll('p br').length,
      };
    }, ANSWER);
    assert.deepEqual(found, {
      h1: ['Title with stress'], em: ['stress'], strong: ['bold'], del: ['gone'],
      links: [['https://example.org/x', 'noopener noreferrer', '_blank'], ['https://example.org/bare', 'noopener noreferrer', '_blank']],
      li: 3, ol: ['inner', 'inner too'], box: true, quote: ['quoted'], th: ['a', 'b'], td: ['1', 'x|y'], align: 'right',
      code: ['fn main() { println!("<b>&amp;</b>"); }'], language: ['rust'], hr: 1, br: 1,
    });
    await page.send('Browser.grantPermissions', { permissions: ['clipboardReadWrite'], browserContextId: page.context }).catch(() => {});
    await page.click(`${ANSWER} figcaption button`);
    await page.until(() => document.querySelector('figcaption button').textContent === 'Copied');
    assert.equal(await page.run(() => navigator.clipboard.readText()), 'fn main() { println!("<b>&amp;</b>"); }');
  }],

  ['lets no text act', async page => {
    await ask(page, HOSTILE);
    await ask(page, `!think ${HOSTILE}`);
    await page.hover(`${ANSWER} [data-act="odds"]`);
    await act(page, 'odds');
    const found = await page.run(() => ({
      strange: document.querySelectorAll('#log :is(img, script, iframe, svg, object, embed, base, link, meta, style)').length,
      handlers: [...document.querySelectorAll('#log *')].filter(n => [...n.attributes].some(a => a.name.startsWith('on'))).length,
      links: [...document.querySelectorAll('#log a')].map(a => a.protocol),
    }));
    assert.equal(found.strange, 0);
    assert.equal(found.handlers, 0);
    assert.ok(found.links.length >= 2 && found.links.every(p => p === 'https:'), found.links.join());
    // a title of the history, a title of the page, the tooltip
    await page.hover('.token');
    await sleep(200);
    assert.equal(await page.run(() => document.querySelectorAll('img, iframe, script:not([type=module])').length), 0);
  }],

  ['takes hostile texts in their stride', async page => {
    await page.until(() => document.getElementById('model').value);
    const long = 100000;
    for (const text of ['*a ', '**a *b ', '[', '[a](', '>', '- ', '`a``', '_a', 'http://', '***a', ' ', '# ', '|a', '<']) {
      const before = Date.now();
      await page.run(t => {
        document.getElementById('prompt').value = t;
        document.getElementById('composer').requestSubmit();
      }, `!whole # x${text.repeat(long / text.length)}y`);
      await page.until(() => document.querySelector('article.assistant'));
      await settled(page);
      // quadratic ones took 6 s for half of that; this is to hold on slow machines, too
      assert.ok(Date.now() - before < 4000, `${Date.now() - before} ms for many ${text}`);
      await page.run(() => document.getElementById('new').click());
    }
  }],

  ['folds thinking', async page => {
    for (const how of ['think', 'reason']) {
      await ask(page, `!${how} x`);
      const found = await page.run(s => {
        const d = document.querySelector(s).querySelector('details.thinking');
        return { hidden: d.hidden, open: d.open, text: d.querySelector('.body').textContent };
      }, ANSWER);
      assert.deepEqual(found, { hidden: false, open: false, text: 'x' });
      assert.equal(await bodyOf(page), 'The answer.');
      await page.click(`${ANSWER} > .thinking:not([hidden]) summary`);
      assert.ok(await page.run(s => document.querySelector(s).querySelector('details').open, ANSWER));
    }
    assert.ok(page.bodies.at(-1).messages.every(m => !/think>/.test(m.content) || m.role === 'user'), 'what was thought is not sent again');
  }],

  ['shows probabilities on hover and by keys', async page => {
    await ask(page, 'once upon a time');
    await act(page, 'odds');
    await page.hover(`${ANSWER} .token`);
    await page.until(() => !document.getElementById('tip').hidden);
    assert.equal(await page.run(() => document.querySelectorAll('#tip tr').length), 5);
    assert.match(await page.text('#tip'), /logarithm -\d/);
    await page.run(() => document.querySelector('.tokens').focus());
    await page.press('Home');
    await page.press('ArrowRight');
    const found = await page.run(() => ({ now: document.querySelector('.here').textContent, id: document.querySelector('.here').id, said: document.querySelector('.here').getAttribute('aria-label'), active: document.querySelector('.tokens').getAttribute('aria-activedescendant') }));
    assert.equal(found.now, ' upon');
    assert.equal(found.active, found.id);
    assert.match(found.said, /^·upon, .*; likeliest: /);
    await act(page, 'odds');
    assert.equal((await bodyOf(page)).trim(), 'once upon a time');
    await page.reload();
    await act(page, 'odds');
    assert.ok(await page.run(() => document.querySelectorAll('.token').length > 3), 'they are kept');
    await ask(page, '!half x');
    assert.equal(await bodyOf(page), '\u{1f600}');
    await act(page, 'odds');
    assert.deepEqual(await page.run(s => [...document.querySelectorAll(`${s} .token`)].map(t => t.textContent), ANSWER), ['\\xf0\\x9f', '\\x98\\x80']);
  }],

  ['replays a seed', async page => {
    await ask(page, '!words 15');
    await act(page, 'replay');
    await page.until(() => /^Same answer: all \d+ characters are equal, and so are all probabilities$/.test(document.querySelector('.replay').textContent));
    const [first, second] = page.bodies;
    assert.deepEqual(first, second);
    await ask(page, '!chance 15');
    await act(page, 'replay');
    await page.until(() => /^Not the same: differs at character \d+$/.test([...document.querySelectorAll('.replay')].at(-1).textContent));
    assert.notEqual(await page.text(`${ANSWER} > details:last-child .body`), await bodyOf(page));
    await say(page, '!slow a b c d e f g h i j k l');
    await page.until(s => document.querySelector(s)?.querySelector(':scope > .body').textContent.length > 3, ANSWER);
    await page.press('Escape');
    await settled(page);
    await act(page, 'replay');
    await page.until(() => /^Same answer as far as it went/.test([...document.querySelectorAll('.replay')].at(-1).textContent));
  }],

  ['says what went wrong', async page => {
    const problem = () => page.text(`${ANSWER} .problem`);
    await ask(page, '!error a b c d e');
    assert.equal(await problem(), 'the engine stopped');
    await ask(page, '!cut a b c d e');
    assert.match(await problem(), /does not answer|cut off|network/i);
    await ask(page, '!busy');
    assert.equal(await problem(), 'The queue is full. Try again in 7 s.');
  }, { expected: /ERR_INCOMPLETE|ERR_CONNECTION|ERR_EMPTY|429/ }],

  ['has settings, and sends only what is set', async page => {
    await page.until(() => document.getElementById('model').value);
    await page.press('s', 'alt');
    await page.until(() => document.getElementById('settings').open);
    assert.equal(await page.run(() => document.getElementById('set-temperature').placeholder), 'default: 0.8');
    const set = (id, value) => page.run((i, v) => { document.getElementById(i).value = v; }, `set-${id}`, value);
    await set('temperature', '3');
    await page.click('#settings-save');
    assert.match(await page.text('#settings-error'), /Temperature must be a number from 0 to 2/);
    assert.equal(await focused(page), 'set-temperature');
    await set('temperature', '0.5');
    await set('seed', '7');
    await set('stop', 'END\nx\\ny');
    await set('thinking', 'off');
    await set('system', 'Be brief.');
    await page.run(() => { document.getElementById('set-probabilities').checked = false; });
    await page.click('#settings-save');
    await page.until(() => !document.getElementById('settings').open);
    await ask(page, 'hello');
    const { messages, model, stream, stream_options, ...rest } = page.bodies.at(-1);
    assert.deepEqual(rest, { temperature: 0.5, seed: 7, stop: ['END', 'x\ny'], chat_template_kwargs: { enable_thinking: false } });
    assert.deepEqual(messages[0], { role: 'system', content: 'Be brief.' });
    await page.reload();
    await page.click('#new');
    await ask(page, 'again');
    assert.equal(page.bodies.at(-1).seed, 7, 'settings are kept');
  }],

  ['is light or dark, as the system or the reader wants', async page => {
    const light = () => page.run(() => getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)');
    assert.equal(await light(), true);
    await page.scheme('dark');
    assert.equal(await light(), false);
    await page.click('#theme');
    assert.equal(await page.text('#theme'), 'Theme: light');
    assert.equal(await light(), true);
    await page.click('#theme');
    await page.scheme('light');
    assert.equal(await light(), false);
    await page.reload();
    assert.equal(await light(), false, 'it is kept');
  }],

  ['works by keys alone', async page => {
    await page.until(() => document.activeElement.id === 'prompt');
    await ask(page, '!words 8');
    const first = await bodyOf(page);
    await page.press('r', 'alt');
    await page.until(() => document.querySelector('article.assistant')?.textContent.includes('2 / 2'));
    await settled(page);
    assert.notEqual(await bodyOf(page), first);
    await page.press('l', 'alt');
    await page.until(() => /^Same/.test(document.querySelector('.replay').textContent));
    await page.press('p', 'alt');
    assert.equal(await focused(page), 'tokens');
    await page.press('ArrowRight');
    await page.until(() => !document.getElementById('tip').hidden);
    await page.press('p', 'alt');
    await page.press('e', 'alt');
    await page.type(' more');
    await page.press('Escape');
    assert.equal(await page.run(() => document.querySelectorAll('article textarea').length), 0);
    await page.press('/');
    assert.equal(await focused(page), 'prompt');
    await page.press('i', 'alt');
    assert.equal(await focused(page), 'inspector');
    await page.run(() => document.getElementById('tab-inspector').focus());
    await page.press('ArrowLeft');
    assert.equal(await focused(page), 'tab-chat');
    await page.press('?');
    await page.until(() => document.getElementById('help').open);
    await page.press('Escape');
    await page.until(() => !document.getElementById('help').open);
    await page.press('n', 'alt');
    assert.equal(await focused(page), 'prompt');
    assert.equal(await page.run(() => document.querySelectorAll('article').length), 0);
    // every control of the page can be reached
    const seen = new Set();
    for (let i = 0; i < 60; i++) {
      await page.press('Tab');
      seen.add(await focused(page));
    }
    for (const id of ['new', 'filter', 'export', 'import', 'menu', 'tab-chat', 'model', 'theme', 'open-settings', 'open-help', 'prompt', 'send']) assert.ok(seen.has(id), `Tab reaches ${id}`);
  }],

  ['names everything for those who do not see it', async page => {
    await ask(page, MARKDOWN);
    const { nodes } = await page.send('Accessibility.getFullAXTree');
    const roles = ['button', 'textbox', 'searchbox', 'combobox', 'tab', 'link', 'checkbox', 'listbox', 'log', 'dialog', 'article', 'navigation'];
    const nameless = nodes.filter(n => !n.ignored && roles.includes(n.role?.value) && !n.name?.value);
    assert.deepEqual(nameless.map(n => n.role.value), []);
    assert.equal(await page.text('#status'), 'The answer is complete, ' + (await page.text(`${ANSWER} .facts`)).match(/^\d+ tokens/)[0]);
  }],

  ['fits narrow screens', async (outer, { browser, url }) => {
    const page = await browser.open(url, { width: 380, height: 700 });
    const open = () => page.run(() => document.getElementById('side').getClientRects().length > 0);
    assert.equal(await open(), false);
    await ask(page, `${'wide '.repeat(40)}\n\n| ${'a | '.repeat(40)}\n|${'---|'.repeat(40)}\n\n\`\`\`\n${'long'.repeat(100)}\n\`\`\``);
    assert.ok(await page.run(() => document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth), 'nothing sticks out');
    await page.click('#menu');
    assert.equal(await open(), true);
    await page.press('Escape');
    assert.equal(await open(), false);
    await page.click('#menu');
    await page.send('Input.dispatchMouseEvent', { type: 'mousePressed', x: 320, y: 300, button: 'left', clickCount: 1 });
    await page.send('Input.dispatchMouseEvent', { type: 'mouseReleased', x: 320, y: 300, button: 'left', clickCount: 1 });
    assert.equal(await open(), false);
    assert.deepEqual(page.problems, []);
    await page.close();
  }],

  ['inspects', async page => {
    await page.click('#tab-inspector');
    await page.until(() => document.querySelector('#inspector .finding'));
    const text = await page.text('#inspector');
    for (const part of ['requests running', '25.0 %', 'echo', '1.24 B', 'model.layers.*.self_attn.q_proj', '4-bit, group 128, symmetric', 'as gptq_marlin', 'chat template', 'it ends with <|im_end|>', 'llama.cpp', 'an odd thing <b>in bold</b>', 'Server version 0.0.0']) {
      assert.ok(text.includes(part), part);
    }
    assert.ok(!text.includes('99'), 'own names before those of others');
    assert.deepEqual(await page.run(() => [...document.querySelectorAll('.grid tbody td')].map(d => d.textContent)), ['4', '4', '8', '8']);
  }],

  ['asks for a key, and copes without an inspector', async (page, { url }) => {
    await page.until(() => document.getElementById('key').open);
    await page.type('wrong');
    await page.press('Enter');
    await page.until(() => /did not take/.test(document.getElementById('key-error').textContent));
    await page.type('secret');
    await page.press('Enter');
    await page.until(() => document.getElementById('model').value === 'echo');
    await ask(page, 'hello');
    assert.equal((await bodyOf(page)).trim(), 'hello');
    await page.click('#tab-inspector');
    await page.until(() => /does not tell what its model/.test(document.getElementById('inspector').textContent));
    assert.equal(await page.run(() => localStorage.getItem('billfish.key')), null, 'kept only if asked to');
    assert.ok(page.requests.every(r => !r.includes('secret')), url);
  }, { expected: /40[14]/, server: { key: 'secret', inspects: false } }],
];
