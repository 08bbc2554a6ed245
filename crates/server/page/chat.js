// The conversation that is shown, and the answer that is being written. There is one answer at a time; it goes on
// when another conversation is opened.

let settings = readSettings();
const chat = { conversation: newConversation(settings.system) };
// {conversation, message, controller, done} of the request that runs; `message` is what is written to
let running = null;

const node = message => byId(`message-${message.id}`);
const shown = conversation => chat.conversation.id === conversation.id;

// Follows the end of the conversation as long as the reader is there.
function keepingEnd(change) {
  const log = byId('log');
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function showConversation() {
  hideTip();
  const { conversation } = chat;
  const path = pathTo(conversation);
  byId('log').replaceChildren(...(path.length
    ? path.map(m => messageNode(conversation, m, acts))
    : [el('div', { class: 'empty' }, el('p', { text: 'Write something. What you write stays in this browser and goes to this server only.' }))]));
  document.title = path.length ? `${conversation.title} – Billfish` : 'Billfish';
  byId('log').scrollTop = byId('log').scrollHeight;
  showRunning();
}

// The address names the conversation, so that a reload shows it again.
const showAddress = id => history.replaceState(null, '', id ? `#${id}` : location.pathname + location.search);

function showRunning() {
  const here = running !== null;
  byId('stop').hidden = !here;
  byId('send').hidden = here;
  byId('log').setAttribute('aria-busy', String(here && shown(running.conversation)));
  for (const article of byId('log').querySelectorAll('article')) article.update();
}

function newChat() {
  chat.conversation = newConversation(settings.system);
  past.filter = byId('filter').value = '';
  showAddress('');
  showTab('chat');
  if (isNarrow()) setSide(false);
  showConversation();
  showHistory();
  byId('prompt').focus();
}

async function openConversation(id) {
  const conversation = running?.conversation.id === id ? running.conversation : await storeGet(id);
  if (!conversation) return false;
  for (const m of conversation.messages) {
    // the page was closed while it came in
    if (m.state === 'writing' && running?.message !== m) m.state = 'stopped';
    if (m.replay?.running && running?.message !== m) delete m.replay;
  }
  chat.conversation = conversation;
  showAddress(id);
  showTab('chat');
  if (isNarrow()) setSide(false);
  showConversation();
  showHistory();
  return true;
}

async function keep(conversation) {
  conversation.updated = Date.now();
  touchHistory(conversation);
  await storePut(conversation);
}

// Runs a request; `out` is filled, `changed` shows it. What has come in is kept once a second.
async function run(conversation, message, body, out, changed) {
  const controller = new AbortController();
  let frame = 0, kept = performance.now();
  const show = () => {
    frame = 0;
    changed();
    if (performance.now() - kept > 1000) {
      kept = performance.now();
      storePut(conversation);
    }
  };
  // a page in the background gets no frames
  const progress = () => {
    if (document.hidden) show();
    else frame ||= requestAnimationFrame(show);
  };
  const done = generate(body, controller.signal, out, progress);
  running = { conversation, message, controller, done };
  showRunning();
  await done;
  cancelAnimationFrame(frame);
  running = null;
  changed();
  showRunning();
  await keep(conversation);
}

async function stopAnswer() {
  running?.controller.abort();
  await running?.done;
}

function requestBody(conversation, message) {
  const path = pathTo(conversation, message.parent);
  return { ...message.request, messages: wireMessages(message.system, path), stream: true, stream_options: { include_usage: true } };
}

// Asks for the answer to the message `parent`.
async function answer(conversation, parent) {
  const request = { model: byId('model').value, ...requestFields(settings) };
  const message = addMessage(conversation, parent, 'assistant', '', { state: 'writing', request, system: conversation.system, model: request.model });
  if (shown(conversation)) showConversation();
  keep(conversation);
  announce('The answer is being written');
  await run(conversation, message, requestBody(conversation, message), message, () => {
    if (shown(conversation)) keepingEnd(() => node(message)?.update());
  });
  announce({ done: `The answer is complete, ${message.speed?.count ?? 0} tokens`, stopped: 'Stopped', failed: message.error?.message }[message.state]);
  if (message.error?.status === 401) askForKey('The server did not take this key.');
}

async function send(text) {
  if (!byId('model').value && !(await loadModels())) return;
  if (running || !text.trim()) return;
  const { conversation } = chat;
  if (!conversation.messages.length) conversation.title = text.trim().replace(/\s+/g, ' ').slice(0, 60);
  const message = addMessage(conversation, conversation.leaf, 'user', text);
  byId('prompt').value = '';
  fitPrompt();
  showAddress(conversation.id);
  await answer(conversation, message.id);
}

const acts = {
  busy: () => running !== null,

  branch(message) {
    chat.conversation.leaf = endOf(chat.conversation, message.id);
    keep(chat.conversation);
    showConversation();
    node(message)?.scrollIntoView({ block: 'nearest' });
    node(message)?.focus({ preventScroll: true });
  },

  async edit(message, text) {
    const { conversation } = chat;
    if (text === message.content || !text.trim()) return;
    if (message.role === 'user') {
      const next = addMessage(conversation, message.parent, 'user', text);
      await answer(conversation, next.id);
    } else {
      addMessage(conversation, message.parent, 'assistant', text, { state: 'done', edited: true, model: message.model, system: message.system });
      showConversation();
      await keep(conversation);
    }
  },

  async regenerate(message) {
    if (!running) await answer(chat.conversation, message.parent);
  },

  // The same request once more. Equal settings and an equal seed must give equal bytes, whatever else the server does.
  async replay(message) {
    if (running) return;
    const { conversation } = chat;
    const again = {};
    const before = message.fingerprint;
    const update = () => {
      if (shown(conversation)) node(message)?.update();
    };
    message.replay = { running: true, count: 0 };
    await run(conversation, message, requestBody(conversation, message), again, () => {
      message.replay = { running: true, count: again.speed?.count ?? 0 };
      update();
      const enough = ['content', 'reasoning'].every(part => (again[part] ?? '').length >= (message[part] ?? '').length);
      if (message.state === 'stopped' && again.state === 'writing' && enough) running?.controller.abort();
    });
    if (again.state === 'failed') message.replay = { error: again.error.message };
    else if (again.state === 'stopped' && message.state === 'done') message.replay = { error: 'it was stopped' };
    else message.replay = { ...compareReplay(message, again), moved: Boolean(before && again.fingerprint && before !== again.fingerprint) };
    update();
    announce(replayText(message.replay));
    await storePut(conversation);
  },
};
