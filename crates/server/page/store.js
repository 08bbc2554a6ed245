// Conversations and where they are kept. A conversation is a tree: an edit or another answer is a new branch,
// and nothing that was written is lost.
//   {id, title, created, updated, system, leaf, messages: [{id, parent, role, content, …}]}

const FORMAT = 'billfish-chats';
let database = null;
// what is kept when the browser keeps nothing (private windows of some)
const unkept = new Map();

function request(r) {
  return new Promise((done, failed) => {
    r.onsuccess = () => done(r.result);
    r.onerror = () => failed(r.error);
  });
}

async function openStore() {
  try {
    const r = indexedDB.open('billfish', 1);
    r.onupgradeneeded = () => r.result.createObjectStore('conversations', { keyPath: 'id' });
    database = await request(r);
  } catch {
    notice('This browser keeps nothing here: conversations are lost when the page is closed. Export saves them.');
  }
}

const table = mode => database.transaction('conversations', mode).objectStore('conversations');

const storeAll = async () => (database ? request(table('readonly').getAll()) : [...unkept.values()]);

// What the list shows of a conversation, and the text that is searched.
const entryOf = c => ({ id: c.id, title: c.title, updated: c.updated, text: [c.title, ...c.messages.map(m => m.content)].join('\n').toLowerCase() });

// The entries of all conversations, read one at a time: probabilities of tokens are large.
async function storeEntries() {
  if (!database) return [...unkept.values()].map(entryOf);
  const out = [];
  const cursor = table('readonly').openCursor();
  return new Promise((done, failed) => {
    cursor.onerror = () => failed(cursor.error);
    cursor.onsuccess = () => {
      if (!cursor.result) return done(out);
      out.push(entryOf(cursor.result.value));
      cursor.result.continue();
    };
  });
}

const storeGet = async id => (database ? request(table('readonly').get(id)) : unkept.get(id));

async function storePut(conversation) {
  try {
    if (database) await request(table('readwrite').put(conversation));
    else unkept.set(conversation.id, conversation);
  } catch (e) {
    notice(`The conversation could not be kept: ${e.message}`);
  }
}

async function storeDelete(id) {
  if (database) await request(table('readwrite').delete(id));
  else unkept.delete(id);
}

const newConversation = system => ({ id: freshId(), title: 'New chat', created: Date.now(), updated: Date.now(), system, leaf: null, messages: [] });

// From the first message to the one that is shown last.
function pathTo(conversation, id = conversation.leaf) {
  const byName = new Map(conversation.messages.map(m => [m.id, m]));
  const path = [];
  for (let m = byName.get(id); m; m = byName.get(m.parent)) path.unshift(m);
  return path;
}

const siblingsOf = (conversation, message) => conversation.messages.filter(m => m.parent === message.parent);

// The end of the branch of a message, by the newest of each.
function endOf(conversation, id) {
  for (;;) {
    const next = conversation.messages.findLast(m => m.parent === id);
    if (!next) return id;
    id = next.id;
  }
}

function addMessage(conversation, parent, role, content, more = {}) {
  const message = { id: freshId(), parent, role, content, created: Date.now(), ...more };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  conversation.updated = Date.now();
  return message;
}

const exported = conversations => JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), conversations }, null, 1);

// Only what we know, in the type that we know; everything else of a file stays out.
function cleanMessage(m, where) {
  const bad = what => new Error(`${where}: ${what}`);
  if (typeof m?.id !== 'string' || !m.id) throw bad('a message without an id');
  if (m.parent !== null && typeof m.parent !== 'string') throw bad('`parent` must be an id or null');
  if (m.role !== 'user' && m.role !== 'assistant') throw bad('`role` must be user or assistant');
  if (typeof m.content !== 'string') throw bad('`content` must be a text');
  const text = v => (typeof v === 'string' ? v : null);
  const number = v => (Number.isFinite(v) ? v : null);
  const odds = v => Array.isArray(v) && typeof v[0] === 'string' && Number.isFinite(v[1]);
  const out = { id: m.id, parent: m.parent, role: m.role, content: m.content, created: number(m.created) ?? 0 };
  if (m.role === 'user') return out;
  const tokens = Array.isArray(m.tokens) ? m.tokens.filter(odds) : [];
  const kinds = v => ['number', 'string', 'boolean'].includes(typeof v) || (Array.isArray(v) && v.every(t => typeof t === 'string')) || typeof v?.enable_thinking === 'boolean';
  const params = m.request && Object.fromEntries(Object.entries(m.request).filter(([key, v]) => REQUEST_KEYS.includes(key) && kinds(v)));
  return {
    ...out,
    reasoning: text(m.reasoning) ?? '',
    state: ['done', 'stopped', 'failed'].includes(m.state) ? m.state : 'stopped',
    error: typeof m.error?.message === 'string' ? { message: m.error.message, status: number(m.error.status) ?? 0 } : null,
    finish: text(m.finish),
    model: text(m.model),
    fingerprint: text(m.fingerprint),
    edited: m.edited === true,
    tokens: tokens.map(t => [t[0], t[1], Array.isArray(t[2]) ? t[2].filter(odds).map(o => [o[0], o[1]]) : []]),
    usage: m.usage && { prompt: number(m.usage.prompt), answer: number(m.usage.answer), cached: number(m.usage.cached) },
    speed: m.speed && { first: number(m.speed.first), count: number(m.speed.count) ?? 0, rate: number(m.speed.rate) },
    request: Number.isSafeInteger(params?.seed) ? params : null,
    system: text(m.system) ?? '',
  };
}

// The conversations of an exported file.
function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error('The file is no JSON.');
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) {
    throw new Error(`The file is no export of this page (format ${FORMAT}, version 1).`);
  }
  return file.conversations.map((c, i) => {
    const where = `Conversation ${i + 1}`;
    if (typeof c?.id !== 'string' || typeof c.title !== 'string' || !Array.isArray(c.messages)) throw new Error(`${where} has no id, title or messages.`);
    const messages = c.messages.map(m => cleanMessage(m, where));
    const before = new Set();
    for (const m of messages) {
      // a parent that comes later could make a circle
      if (m.parent !== null && !before.has(m.parent)) throw new Error(`${where}: the parent of a message does not stand before it.`);
      if (before.has(m.id)) throw new Error(`${where}: two messages have one id.`);
      before.add(m.id);
    }
    const leaf = before.has(c.leaf) ? c.leaf : (messages.at(-1)?.id ?? null);
    const time = v => (Number.isFinite(v) ? v : Date.now());
    return { id: c.id, title: c.title.slice(0, 200), created: time(c.created), updated: time(c.updated), system: typeof c.system === 'string' ? c.system : '', leaf, messages };
  });
}
