// A server that says what it is told: the answer to a message is the message, token by token. Words with a `!` in
// front make it do what no model does on demand. It shows the page what only odd servers and models show it.
//
//   !slow TEXT     a token every 150 ms            !error TEXT   an error event after three tokens
//   !words N       N words that the seed chooses   !cut TEXT     the connection breaks after three tokens
//   !chance N      N words that nothing chooses    !busy         429 with Retry-After
//   !think TEXT    thinks TEXT, then answers       !reason TEXT  the same, in a field of its own
//   !whole TEXT    all in one token                !half         a character in two tokens

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const WORDS = 'the king had three daughters and one golden apple that nobody could find in all the dark woods'.split(' ');
const sleep = ms => new Promise(done => setTimeout(done, ms));

// The page, joined in the order that the server's own code has.
function page() {
  const root = join(dirname(fileURLToPath(import.meta.url)), '../..');
  const read = path => readFileSync(join(root, path), 'utf8');
  const code = read('src/page.rs').split('const SCRIPT')[1];
  const script = [...code.matchAll(/include_str!\("\.\.\/(page\/\w+\.js)"\)/g)].map(m => read(m[1])).join('');
  const style = read('page/style.css');
  const hash = text => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
  const html = read('page/index.html').replace('/* style */', () => style).replace('/* script */', () => script);
  const csp = `default-src 'none'; connect-src 'self'; img-src data:; style-src ${hash(style)}; script-src ${hash(script)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`;
  return { html, csp };
}

// SplitMix64: a seed's own sequence.
function numbers(seed) {
  let state = BigInt(seed);
  return below => {
    state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n);
    let z = state;
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    return Number((z ^ (z >> 31n)) % BigInt(below));
  };
}

const INSPECTION = {
  object: 'inspect',
  inspect: {
    name: 'echo', model_type: 'llama', supported: true, parameters: 1235814400, bytes: 5000000, bits_per_weight: 4.3, isa: 'avx512', cpu_features: ['avx512f'], experts: [], warnings: ['an odd thing <b>in bold</b>'],
    modules: [0, 1].flatMap(l => ['q_proj', 'o_proj'].map(m => ({
      module: `model.layers.${l}.self_attn.${m}`, in_features: 256, out_features: 256, quantized: true, bits: l ? 8 : 4, group_size: 128, sym: true, act_order: false, refused: null, bytes: 35000, bits_per_weight: 4.28,
      kernel: 'k4n16-w4', zero_point_dialect: 'v1', zero_point_evidence: 'all are 7' }))),
    vllm: { outcome: 'runs', why: 'as gptq_marlin', modules: [] },
  },
  doctor: {
    sound: false, engines: [{ engine: 'llama.cpp', outcome: 'refuses', why: 'it loads GGUF files only' }],
    findings: [{ severity: 'warning', subject: 'chat template', evidence: 'it ends with <|im_end|>', consequence: 'replies do not end', remedy: 'add the id' }],
  },
  defaults: { temperature: 0.8, top_p: 0.95, top_k: 0, min_p: 0, repetition_penalty: 1, max_tokens: null, max_model_len: 1024 },
};

// Listens on a free port; `key` is asked for if it is given, `inspects` says whether there is v1/inspect.
export async function startMock({ key = null, inspects = true } = {}) {
  const { html, csp } = page();
  const counts = { running: 0, prompt: 0, answer: 0 };
  const json = (response, status, value, headers = {}) => response.writeHead(status, { 'Content-Type': 'application/json', ...headers }).end(JSON.stringify(value));
  const fail = (response, status, message, headers) => json(response, status, { error: { message, type: 'invalid_request_error', param: null, code: null } }, headers);

  async function chat(body, response) {
    const asked = body.messages.at(-1).content;
    const [, act = '', rest] = /^(?:!(\w+) ?)?([^]*)$/.exec(asked);
    if (act === 'busy') return fail(response, 429, 'The queue is full.', { 'Retry-After': '7' });
    const number = numbers(act === 'chance' ? process.hrtime.bigint() : body.seed);
    const words = n => Array.from({ length: n }, (_, i) => (i ? ' ' : '') + WORDS[number(WORDS.length)]);
    const tokens = act === 'words' || act === 'chance' ? words(Number(rest)) : act === 'whole' ? [rest] : rest.match(/\s*[^\s]{1,6}|\s+$/g) ?? [];
    const thoughts = act === 'think' || act === 'reason' ? tokens.splice(0, tokens.length, 'The', ' answer.') : [];
    response.writeHead(200, { 'Content-Type': 'text/event-stream' });
    counts.running++;
    response.on('close', () => counts.running--);
    const event = (delta, more = {}, top = {}) => response.write(`data: ${JSON.stringify({
      id: 'chatcmpl-1', object: 'chat.completion.chunk', created: 1, model: body.model, system_fingerprint: 'mock', choices: [{ index: 0, delta, finish_reason: null, ...more }], usage: null, ...top })}\n\n`);
    event({ role: 'assistant', content: '' });
    const inline = act === 'think' ? ['<think>', ...thoughts, '</think>', '\n\n', ...tokens] : tokens;
    if (act === 'reason') for (const t of thoughts) event({ reasoning_content: t });
    for (const [i, token] of inline.entries()) {
      if (response.destroyed) return;
      if (i === 3 && act === 'error') return response.end(`data: ${JSON.stringify({ error: { message: 'the engine stopped', type: 'server_error', param: null, code: null } })}\n\n`);
      if (i === 3 && act === 'cut') return response.destroy();
      await sleep(act === 'slow' ? 150 : 4);
      if (act === 'half') {
        const half = bytes => ({ token: '\ufffd', logprob: -0.5, bytes, top_logprobs: [] });
        event({ content: '' }, { logprobs: { content: [half([0xf0, 0x9f])], refusal: null } });
        event({ content: '\u{1f600}' }, { logprobs: { content: [half([0x98, 0x80])], refusal: null } });
        continue;
      }
      const logprob = Math.log((number(1000) + 1) / 1001);
      const others = [0.3, 0.1, 0.05, 0.01].map((p, n) => ({ token: ` other${n}`, logprob: Math.log(p), bytes: [] }));
      event({ content: token }, body.logprobs ? { logprobs: { content: [{ token, logprob, bytes: [], top_logprobs: [{ token, logprob, bytes: [] }, ...others] }], refusal: null } } : {});
      counts.answer++;
    }
    event({}, { finish_reason: 'stop' });
    counts.prompt += body.messages.length * 10;
    response.write(`: a comment\n\ndata: ${JSON.stringify({ id: 'chatcmpl-1', object: 'chat.completion.chunk', choices: [], usage: { prompt_tokens: body.messages.length * 10, completion_tokens: inline.length, total_tokens: 0 } })}\n\n`);
    response.end('data: [DONE]\n\n');
  }

  const server = createServer(async (request, response) => {
    const path = new URL(request.url, 'http://mock').pathname;
    const allowed = !key || request.headers.authorization === `Bearer ${key}`;
    if (path === '/') return response.writeHead(allowed ? 200 : 401, { 'Content-Type': 'text/html; charset=utf-8', 'Content-Security-Policy': csp }).end(html);
    if (!allowed) return fail(response, 401, 'Incorrect API key.');
    if (path === '/v1/models') return json(response, 200, { object: 'list', data: [{ id: 'echo', object: 'model', max_model_len: 1024 }] });
    if (path === '/version') return json(response, 200, { version: '0.0.0' });
    if (path === '/metrics') return response.end(`# HELP x\nbillfish_num_requests_running{model_name="echo"} ${counts.running}\nvllm:num_requests_running 99\nvllm:kv_cache_usage_perc 0.25\nbillfish_generation_tokens_total ${counts.answer}\n`);
    if (path === '/v1/inspect' && inspects) return json(response, 200, INSPECTION);
    if (path === '/v1/chat/completions') {
      let body = '';
      for await (const part of request) body += part;
      return chat(JSON.parse(body), response);
    }
    return fail(response, 404, 'no such path');
  });
  await new Promise(done => server.listen(0, '127.0.0.1', done));
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.closeAllConnections() ?? server.close(), counts };
}
