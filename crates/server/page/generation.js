// One answer: what was asked for, what has come of it so far, and how fast.

// Divides a text into what the model thought and what it says. Templates may write the opening mark into the
// prompt, so that only the closing one is in the answer.
function splitThinking(content) {
  const open = /^\s*<think>/.exec(content);
  const end = content.indexOf('</think>');
  if (end >= 0) return { thinking: content.slice(open?.[0].length ?? 0, end).trim(), answer: content.slice(end + 8).trimStart(), open: false };
  if (open) return { thinking: content.slice(open[0].length).trim(), answer: '', open: true };
  return { thinking: '', answer: content, open: false };
}

// The messages that a template sees before the answer to the last of `path`.
function wireMessages(system, path) {
  const messages = system ? [{ role: 'system', content: system }] : [];
  for (const m of path) {
    const content = m.role === 'assistant' ? splitThinking(m.content).answer : m.content;
    if (content || m.role === 'user') messages.push({ role: m.role, content });
  }
  return messages;
}

const freshSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;

// The text of a token. One that is a part of a character only is shown by its bytes.
function tokenText({ token, bytes }) {
  if (!token.includes('\ufffd') || !bytes) return token;
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array(bytes));
  } catch {
    return bytes.map(b => `\\x${b.toString(16).padStart(2, '0')}`).join('');
  }
}

// What is kept of a token: its text, its logarithm, and the likeliest at its place with theirs.
const keptToken = entry => [tokenText(entry), entry.logprob, (entry.top_logprobs ?? []).map(t => [tokenText(t), t.logprob])];

// Runs a request; `out` is filled as the answer comes in, and `progress` is told of it.
async function generate(body, signal, out, progress) {
  const started = performance.now();
  let first = 0, last = 0, pieces = 0;
  Object.assign(out, { state: 'writing', content: '', reasoning: '', tokens: [], finish: null, error: null, usage: null, speed: null });
  try {
    for await (const chunk of streamChat(body, signal)) {
      out.model = chunk.model ?? out.model;
      out.fingerprint = chunk.system_fingerprint ?? out.fingerprint ?? null;
      if (chunk.usage) out.usage = { prompt: chunk.usage.prompt_tokens, answer: chunk.usage.completion_tokens, cached: chunk.usage.prompt_tokens_details?.cached_tokens ?? null };
      const choice = chunk.choices?.[0];
      if (choice) {
        const { content, reasoning_content: thought, reasoning } = choice.delta ?? {};
        const tokens = choice.logprobs?.content ?? [];
        if (content || thought || reasoning || tokens.length) {
          last = performance.now();
          first ||= last;
          pieces += Math.max(tokens.length, 1);
        }
        out.content += content ?? '';
        out.reasoning += thought ?? reasoning ?? '';
        out.tokens.push(...tokens.map(keptToken));
        out.finish = choice.finish_reason ?? out.finish;
      }
      const count = out.usage?.answer ?? pieces;
      out.speed = { first: first ? first - started : null, count, rate: count > 1 && last > first ? ((count - 1) * 1000) / (last - first) : null };
      progress();
    }
    out.state = 'done';
  } catch (e) {
    out.state = e.name === 'AbortError' ? 'stopped' : 'failed';
    if (out.state === 'failed') out.error = { message: e.message, status: e.status ?? 0, param: e.param ?? null, retryAfter: e.retryAfter ?? null };
  }
  progress();
}

// Where two texts or lists begin to differ; -1 if one begins with the other.
function firstDifference(a, b) {
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i++) if (a[i] !== b[i]) return i;
  return -1;
}

// Compares an answer with what the same request gave again. Of one that was stopped, as much as there is of it.
function compareReplay(message, again) {
  const whole = message.state === 'done';
  for (const part of ['reasoning', 'content']) {
    const before = message[part] ?? '', now = again[part] ?? '';
    const at = firstDifference(before, now);
    if (at >= 0 || (whole ? before.length !== now.length : now.length < before.length)) {
      return { same: false, at: at < 0 ? Math.min(before.length, now.length) : at, part, text: now };
    }
  }
  const odds = (message.tokens ?? []).map(t => t[1]), oddsNow = (again.tokens ?? []).map(t => t[1]);
  const drift = firstDifference(odds, oddsNow);
  const compared = odds.length > 0 && oddsNow.length > 0;
  return { same: true, whole, length: (message.content ?? '').length, odds: compared ? drift < 0 : null };
}
