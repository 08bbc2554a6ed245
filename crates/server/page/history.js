// The list of conversations, and their way out of the browser and back.

const past = { entries: [], filter: '' };

async function refreshHistory() {
  past.entries = await storeEntries();
  showHistory();
}

// Shows what has become of one conversation.
function touchHistory(conversation) {
  past.entries = [entryOf(conversation), ...past.entries.filter(e => e.id !== conversation.id)];
  showHistory();
}

function titleInput(conversation, item) {
  const input = el('input', { 'aria-label': 'Title of the conversation' });
  input.value = conversation.title;
  let open = true;
  const close = async keep => {
    if (!open) return;
    open = false;
    if (keep && input.value.trim()) await renameConversation(conversation.id, input.value.trim().slice(0, 200));
    showHistory();
    byId('list').querySelector('li.now .open')?.focus();
  };
  input.addEventListener('keydown', event => {
    event.stopPropagation();
    if (event.key === 'Enter') close(true);
    if (event.key === 'Escape') close(false);
  });
  input.addEventListener('blur', () => close(true));
  item.replaceChildren(input);
  input.select();
}

function showHistory() {
  const wanted = past.filter.toLowerCase();
  const found = past.entries.filter(e => e.text.includes(wanted)).sort((a, b) => b.updated - a.updated);
  byId('list').replaceChildren(...found.map(c => {
    const now = c.id === chat.conversation.id;
    const item = el('li', { class: now ? 'now' : null });
    item.append(
      el('button', { type: 'button', class: 'open', text: c.title, title: c.title, 'aria-current': now ? 'true' : null, onclick: () => openConversation(c.id) }),
      button('✎', 'Rename', () => titleInput(c, item), { class: 'small', 'aria-label': `Rename ${c.title}` }),
      button('✕', 'Delete', () => deleteConversation(c), { class: 'small', 'aria-label': `Delete ${c.title}` }));
    return item;
  }));
}

async function renameConversation(id, title) {
  const conversation = id === chat.conversation.id ? chat.conversation : running?.conversation.id === id ? running.conversation : await storeGet(id);
  if (!conversation) return;
  conversation.title = title;
  await storePut(conversation);
  touchHistory(conversation);
}

async function deleteConversation(conversation) {
  if (!(await ask(`Delete “${conversation.title}”? It cannot be brought back.`, 'Delete'))) return;
  if (running?.conversation.id === conversation.id) await stopAnswer();
  await storeDelete(conversation.id);
  if (chat.conversation.id === conversation.id) newChat();
  await refreshHistory();
}

async function exportAll() {
  const all = (await storeAll()).sort((a, b) => b.updated - a.updated);
  if (!all.length) {
    notice('There is no conversation to export.');
    return;
  }
  const address = URL.createObjectURL(new Blob([exported(all)], { type: 'application/json' }));
  el('a', { href: address, download: `billfish-chats-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  announce(`${all.length} conversations exported`);
}

// A conversation that is here already in other words comes in beside it.
async function importFile(file) {
  let incoming;
  try {
    incoming = imported(await file.text());
  } catch (e) {
    notice(`${file.name}: ${e.message} Nothing was imported.`);
    return;
  }
  let added = 0;
  for (const conversation of incoming) {
    const here = await storeGet(conversation.id);
    if (here && JSON.stringify(here.messages.map(m => [m.id, m.content])) === JSON.stringify(conversation.messages.map(m => [m.id, m.content]))) continue;
    await storePut(here ? { ...conversation, id: freshId() } : conversation);
    added++;
  }
  await refreshHistory();
  notice(`${added} of ${incoming.length} conversations added${added < incoming.length ? ', the others were here already' : ''}.`);
}
