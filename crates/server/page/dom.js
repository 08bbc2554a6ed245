// Elements made without markup: a text only ever becomes text, whatever is in it.

const byId = id => document.getElementById(id);

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'text') node.textContent = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter(c => c !== undefined && c !== null && c !== false));
  return node;
}

const button = (text, title, onclick, props = {}) => el('button', { type: 'button', text, title, onclick, ...props });

// Says something to those who hear the page and do not see it.
function announce(text) {
  byId('status').textContent = text;
}

let noticeEnds = 0;

function notice(text) {
  byId('notice').textContent = text;
  clearTimeout(noticeEnds);
  noticeEnds = setTimeout(() => byId('notice').replaceChildren(), 6000);
}

// The clipboard is there on local and encrypted pages only.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el('textarea', { class: 'hidden', 'aria-hidden': 'true' });
    area.value = text;
    document.body.append(area);
    const before = document.activeElement;
    area.select();
    const copied = document.execCommand('copy');
    area.remove();
    before?.focus();
    if (!copied) {
      notice('The browser does not let this page copy.');
      return;
    }
  }
  announce('Copied');
}

// A button that says for a moment that it has copied.
function copyButton(title, text) {
  const b = button('Copy', title, async () => {
    await copyText(text());
    b.textContent = 'Copied';
    setTimeout(() => { b.textContent = 'Copy'; }, 1500);
  });
  return b;
}

// Asks a question; true if the answer is yes.
function ask(question, yes) {
  const dialog = byId('question');
  byId('question-text').textContent = question;
  byId('question-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise(done => dialog.addEventListener('close', () => done(dialog.returnValue === 'yes'), { once: true }));
}

// An id that no other record has; `randomUUID` is missing on pages that are neither local nor encrypted.
function freshId() {
  return [...crypto.getRandomValues(new Uint32Array(4))].map(n => n.toString(16).padStart(8, '0')).join('');
}
