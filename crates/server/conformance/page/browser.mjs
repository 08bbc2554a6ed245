// A headless Chromium, driven over its DevTools protocol through a pipe: nothing to install.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const KEYS = { Enter: 13, Escape: 27, Tab: 9, ArrowRight: 39, ArrowLeft: 37, ArrowDown: 40, ArrowUp: 38, Home: 36, End: 35, ' ': 32 };
const MODIFIERS = { alt: 1, ctrl: 2, meta: 4, shift: 8 };

export const sleep = ms => new Promise(done => setTimeout(done, ms));

export class Browser {
  static async launch(program) {
    const b = new Browser();
    b.folder = mkdtempSync(join(tmpdir(), 'billfish-page-'));
    const flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run', '--remote-debugging-pipe', `--user-data-dir=${b.folder}`, 'about:blank'];
    b.process = spawn(program, flags, { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
    b.last = 0;
    b.waiting = new Map();
    b.listeners = [];
    let rest = '';
    b.process.stdio[4].on('data', data => {
      const parts = (rest + data).split('\0');
      rest = parts.pop();
      for (const part of parts) b.hear(JSON.parse(part));
    });
    await b.send('Target.setDiscoverTargets', { discover: true });
    return b;
  }

  hear(message) {
    if (!message.id) {
      for (const listener of this.listeners) listener(message);
      return;
    }
    const { done, failed, method } = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (message.error) failed(new Error(`${method}: ${message.error.message}`));
    else done(message.result);
  }

  send(method, params = {}, sessionId) {
    const id = ++this.last;
    this.process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((done, failed) => this.waiting.set(id, { done, failed, method }));
  }

  // A tab with storage of its own.
  async open(url, { width = 1200, height = 800, scheme = 'light' } = {}) {
    const { browserContextId } = await this.send('Target.createBrowserContext');
    const { targetId } = await this.send('Target.createTarget', { url: 'about:blank', browserContextId });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const page = new Page(this, sessionId, browserContextId);
    this.listeners.push(m => m.sessionId === sessionId && page.hear(m));
    for (const domain of ['Page', 'Runtime', 'Log', 'Network', 'DOM']) await page.send(`${domain}.enable`);
    await this.send('Browser.setDownloadBehavior', { behavior: 'allow', downloadPath: this.folder, browserContextId });
    await page.size(width, height);
    // a tab that is not in front neither types nor draws
    await page.send('Emulation.setFocusEmulationEnabled', { enabled: true });
    await page.send('Page.bringToFront');
    await page.scheme(scheme);
    await page.go(url);
    return page;
  }

  async close() {
    await this.send('Browser.close').catch(() => {});
    if (this.process.exitCode === null) await new Promise(done => this.process.on('exit', done));
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

class Page {
  constructor(browser, session, context) {
    Object.assign(this, { browser, session, context, problems: [], requests: [], bodies: [] });
  }

  send(method, params) {
    return this.browser.send(method, params, this.session);
  }

  hear({ method, params }) {
    if (method === 'Runtime.exceptionThrown') this.problems.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === 'Runtime.consoleAPICalled' && params.type === 'error') this.problems.push(params.args.map(a => a.value ?? a.description).join(' '));
    if (method === 'Log.entryAdded' && ['error', 'warning'].includes(params.entry.level)) this.problems.push(`${params.entry.text} ${params.entry.url ?? ''}`);
    if (method === 'Network.requestWillBeSent') {
      this.requests.push(params.request.url);
      if (params.request.postData) this.bodies.push(JSON.parse(params.request.postData));
    }
    if (method === 'Page.javascriptDialogOpening') {
      this.problems.push(`a dialog: ${params.message}`);
      this.send('Page.handleJavaScriptDialog', { accept: false });
    }
  }

  async go(url) {
    await this.fresh(() => this.send('Page.navigate', { url }));
  }

  async reload() {
    await this.fresh(() => this.send('Page.reload'));
  }

  // A new document, which has said that it is ready; the old one is known by a mark.
  async fresh(load) {
    await this.run(() => { globalThis.old = true; });
    await load();
    await this.until(() => !globalThis.old && document.readyState === 'complete' && document.body.getAttribute('aria-busy') === null);
  }

  size(width, height) {
    return this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false });
  }

  scheme(value) {
    return this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value }] });
  }

  // Runs a function in the page; it sees its arguments only.
  async run(f, ...args) {
    const expression = `(${f})(...${JSON.stringify(args)})`;
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  // Waits until a function of the page gives something.
  async until(f, ...args) {
    const end = Date.now() + 8000;
    for (;;) {
      const value = await this.run(f, ...args).catch(e => {
        // the page is between two documents
        if (/context|navigat/i.test(e.message)) return null;
        throw e;
      });
      if (value) return value;
      if (Date.now() > end) throw new Error(`never came: ${f} ${JSON.stringify(args)}`);
      await sleep(15);
    }
  }

  text(selector) {
    return this.run(s => document.querySelector(s)?.innerText ?? null, selector);
  }

  async place(selector) {
    const at = await this.run(s => {
      const node = [...document.querySelectorAll(s)].at(-1);
      if (!node) return null;
      node.scrollIntoView({ block: 'nearest' });
      const r = node.getClientRects()[0];
      return r && { x: r.x + r.width / 2, y: r.y + r.height / 2 };
    }, selector);
    if (!at) throw new Error(`nothing to point at: ${selector}`);
    return at;
  }

  // With the pointer, on the last element that fits.
  async click(selector) {
    const at = await this.place(selector);
    for (const type of ['mouseMoved', 'mousePressed', 'mouseReleased']) await this.send('Input.dispatchMouseEvent', { type, ...at, button: type === 'mouseMoved' ? 'none' : 'left', clickCount: 1 });
  }

  async hover(selector) {
    await this.send('Input.dispatchMouseEvent', { type: 'mouseMoved', ...(await this.place(selector)) });
  }

  type(text) {
    return this.send('Input.insertText', { text });
  }

  async press(key, ...modifiers) {
    const code = key.length === 1 && /[a-z]/i.test(key) ? `Key${key.toUpperCase()}` : key;
    const flags = modifiers.reduce((sum, m) => sum + MODIFIERS[m], 0);
    const text = key === 'Enter' ? '\r' : key.length === 1 && !flags ? key : undefined;
    const event = { key, code, modifiers: flags, windowsVirtualKeyCode: KEYS[key] ?? key.toUpperCase().charCodeAt(0) };
    await this.send('Input.dispatchKeyEvent', { type: text ? 'keyDown' : 'rawKeyDown', text, ...event });
    await this.send('Input.dispatchKeyEvent', { type: 'keyUp', ...event });
  }

  async setFiles(selector, files) {
    const { root } = await this.send('DOM.getDocument');
    const { nodeId } = await this.send('DOM.querySelector', { nodeId: root.nodeId, selector });
    await this.send('DOM.setFileInputFiles', { nodeId, files });
  }

  async screenshot(path) {
    const { data } = await this.send('Page.captureScreenshot', { format: 'png' });
    writeFileSync(path, Buffer.from(data, 'base64'));
  }

  close() {
    return this.browser.send('Target.disposeBrowserContext', { browserContextId: this.context });
  }
}
