// What goes to the server and what comes back. Paths are relative, so the page works behind a prefix, too.

class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

const KEY = 'billfish.key';
const apiKey = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? '';

function setApiKey(key, keep) {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
  if (key) (keep ? localStorage : sessionStorage).setItem(KEY, key);
}

// The error that the body of a response, or an event of a stream, describes.
function errorOf(value, status, retryAfter = null) {
  const error = value?.error;
  const message = typeof error === 'string' ? error : error?.message;
  const text = message || `The server answered with status ${status}.`;
  return new ApiError(text, { status, code: error?.code ?? null, param: error?.param ?? null, retryAfter });
}

async function call(path, { body, signal } = {}) {
  const headers = {};
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  if (body) headers['Content-Type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, { method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), signal, credentials: 'omit', cache: 'no-store' });
  } catch (e) {
    if (e.name === 'AbortError') throw e;
    throw new ApiError('The server does not answer. Does it still run?');
  }
  if (!response.ok) {
    const value = await response.json().catch(() => null);
    throw errorOf(value, response.status, response.headers.get('Retry-After'));
  }
  return response;
}

const getJson = async path => (await call(path)).json();

// The data of each server-sent event.
async function* eventsOf(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = '', data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      // a return at the end may be the first half of a line end
      const held = !done && rest.endsWith('\r') ? 1 : 0;
      const lines = rest.slice(0, rest.length - held).split(/\r\n|\r|\n/);
      rest = lines.pop() + rest.slice(rest.length - held);
      for (const line of lines) {
        if (line === '' && data.length) {
          yield data.join('\n');
          data = [];
        } else if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// The objects of a streamed answer, up to `[DONE]`.
async function* streamChat(body, signal) {
  const response = await call('v1/chat/completions', { body, signal });
  for await (const data of eventsOf(response)) {
    if (data === '[DONE]') return;
    let value;
    try {
      value = JSON.parse(data);
    } catch {
      throw new ApiError('The server sent an event that is no JSON.');
    }
    if (value.error) throw errorOf(value, value.error.code ?? 500);
    yield value;
  }
  throw new ApiError('The answer was cut off: the connection ended before its last event.');
}

// What the server counts, by name without prefix, the series of a name added up. Some servers have the names of vLLM only.
async function metrics() {
  const text = await (await call('metrics')).text();
  const own = {}, other = {};
  for (const line of text.split('\n')) {
    const found = /^(billfish_|vllm:)(\w+)(?:\{.*\})? +(\S+)/.exec(line);
    if (!found) continue;
    const into = found[1] === 'vllm:' ? other : own;
    into[found[2]] = (into[found[2]] ?? 0) + Number(found[3]);
  }
  return { ...other, ...own };
}
