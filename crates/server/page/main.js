// What stands around the conversation: tabs, models, the key, the theme, the keyboard. Begins everything.

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const THEME = 'billfish.theme';
const THEMES = { auto: 'Theme: system', light: 'Theme: light', dark: 'Theme: dark' };
const KEYS = [
  ['Enter', 'sends the message'], ['Shift+Enter', 'begins a new line'], ['Esc', 'stops the answer'],
  ['Alt+N', 'new chat'], ['Alt+R', 'another answer'], ['Alt+E', 'edit the last message'], ['Alt+P', 'probabilities of the last answer'],
  ['Alt+L', 'replay the last answer'], ['Alt+I', 'inspector and back'], ['Alt+S', 'settings'], ['Alt+C', 'conversations'], ['/', 'to the message field'], ['?', 'this list'],
];

function showTab(name) {
  for (const tab of ['chat', 'inspector']) {
    const now = tab === name;
    byId(tab).hidden = !now;
    byId(`tab-${tab}`).setAttribute('aria-selected', String(now));
    byId(`tab-${tab}`).tabIndex = now ? 0 : -1;
  }
  hideTip();
  if (name === 'inspector') showInspector();
}

const tabNow = () => (byId('chat').hidden ? 'inspector' : 'chat');

async function loadModels() {
  try {
    const { data } = await getJson('v1/models');
    const before = byId('model').value;
    byId('model').replaceChildren(...data.map(m => el('option', { value: m.id, text: m.id })));
    if (data.some(m => m.id === before)) byId('model').value = before;
    byId('model').title = data[0]?.max_model_len ? `Model; ${data[0].max_model_len} tokens of context` : 'Model';
    return true;
  } catch (e) {
    if (e.status === 401) askForKey(apiKey() ? 'The server did not take this key.' : '');
    else notice(e.message);
    return false;
  }
}

function askForKey(problem) {
  const dialog = byId('key'), value = byId('key-value');
  if (dialog.open) return;
  value.value = '';
  byId('key-error').textContent = problem;
  byId('key-cancel').onclick = () => dialog.close();
  dialog.querySelector('form').onsubmit = async event => {
    event.preventDefault();
    setApiKey(value.value.trim(), byId('key-keep').checked);
    dialog.close();
    inspection = null;
    if (await loadModels()) {
      announce('The key is right');
      if (tabNow() === 'inspector') showInspector();
    }
  };
  dialog.showModal();
  value.focus();
}

function setTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
  byId('theme').textContent = THEMES[theme];
}

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(localStorage.getItem(THEME) ?? 'auto') + 1) % names.length]);
}

function fitPrompt() {
  const prompt = byId('prompt');
  prompt.style.height = 'auto';
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

async function editSettings() {
  if (byId('settings').open) return;
  const known = await Promise.race([readInspection().catch(() => null), new Promise(done => setTimeout(done, 300, null))]);
  openSettings({ ...settings, system: chat.conversation.system }, known?.defaults, next => {
    settings = next;
    writeSettings(settings);
    chat.conversation.system = settings.system;
    if (chat.conversation.messages.length) keep(chat.conversation);
    announce('Settings saved');
  });
}

// The conversations cover the chat then; the same width is in the style.
const isNarrow = () => innerWidth <= 736;

function setSide(open) {
  byId('side').classList.toggle('closed', !open);
  byId('menu').setAttribute('aria-expanded', String(open));
}

const sideOpen = () => !byId('side').classList.contains('closed');

function lastAct(name) {
  const all = [...byId('log').querySelectorAll(`[data-act="${name}"]`)].filter(b => !b.disabled && !b.hidden);
  all.at(-1)?.click();
}

// By `code`, because Alt writes other letters on some keyboards.
const SHORTCUTS = {
  KeyN: newChat,
  KeyR: () => lastAct('regenerate'),
  KeyE: () => [...byId('log').querySelectorAll('article.user')].at(-1)?.edit(),
  KeyP: () => lastAct('odds'),
  KeyL: () => lastAct('replay'),
  KeyI: () => {
    showTab(tabNow() === 'chat' ? 'inspector' : 'chat');
    byId(tabNow() === 'chat' ? 'prompt' : 'inspector').focus();
  },
  KeyS: editSettings,
  KeyC: () => {
    setSide(!sideOpen());
    if (sideOpen()) (byId('list').querySelector('.open') ?? byId('new')).focus();
    else byId('prompt').focus();
  },
};

function onKey(event) {
  if (event.defaultPrevented || event.isComposing || document.querySelector('dialog[open]')) return;
  const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.altKey && !event.ctrlKey && !event.metaKey && SHORTCUTS[event.code]) {
    event.preventDefault();
    SHORTCUTS[event.code]();
  } else if (event.key === 'Escape') {
    hideTip();
    if (isNarrow() && sideOpen()) setSide(false);
    else stopAnswer();
  } else if (!writing && !event.ctrlKey && !event.metaKey && event.key === '/') {
    event.preventDefault();
    showTab('chat');
    byId('prompt').focus();
  } else if (!writing && event.key === '?') byId('help').showModal();
}

// Another tab may have written to the same conversation.
async function takeOver() {
  if (document.hidden || running) return;
  const { id, updated } = chat.conversation;
  const stored = await storeGet(id);
  if (stored && stored.updated > updated && !running && chat.conversation.id === id) await openConversation(id);
  await refreshHistory();
}

function wire() {
  byId('composer').addEventListener('submit', event => {
    event.preventDefault();
    send(byId('prompt').value);
  });
  byId('prompt').addEventListener('keydown', event => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send(byId('prompt').value);
    }
  });
  byId('prompt').addEventListener('input', fitPrompt);
  byId('stop').addEventListener('click', stopAnswer);
  byId('new').addEventListener('click', newChat);
  byId('menu').addEventListener('click', event => {
    setSide(!sideOpen());
    event.stopPropagation();
  });
  byId('stage').addEventListener('click', () => {
    if (isNarrow()) setSide(false);
  });
  byId('filter').addEventListener('input', () => {
    past.filter = byId('filter').value;
    showHistory();
  });
  byId('export').addEventListener('click', exportAll);
  byId('import').addEventListener('click', () => byId('file').click());
  byId('file').addEventListener('change', async () => {
    for (const file of byId('file').files) await importFile(file);
    byId('file').value = '';
  });
  byId('theme').addEventListener('click', nextTheme);
  byId('open-settings').addEventListener('click', editSettings);
  byId('open-help').addEventListener('click', () => byId('help').showModal());
  for (const tab of ['chat', 'inspector']) {
    byId(`tab-${tab}`).addEventListener('click', () => showTab(tab));
    byId(`tab-${tab}`).addEventListener('keydown', event => {
      if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
      showTab(tab === 'chat' ? 'inspector' : 'chat');
      byId(`tab-${tabNow()}`).focus();
    });
  }
  byId('log').addEventListener('scroll', hideTip);
  document.addEventListener('keydown', onKey);
  document.addEventListener('visibilitychange', takeOver);
  byId('keys').replaceChildren(...KEYS.flatMap(([keys, what]) => [
    el('dt', {}, keys.split('+').flatMap((k, i) => [i ? '+' : null, el('kbd', { text: MAC && k === 'Alt' ? '⌥' : k })])), el('dd', { text: what })]));
}

async function start() {
  setTheme(localStorage.getItem(THEME) in THEMES ? localStorage.getItem(THEME) : 'auto');
  setSide(!isNarrow());
  wire();
  await openStore();
  await refreshHistory();
  if (!(location.hash && (await openConversation(location.hash.slice(1))))) newChat();
  document.body.removeAttribute('aria-busy');
  await loadModels();
}

start();
