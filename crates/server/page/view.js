// How a message looks, with what can be done about it. `acts` holds what happens then.

function speedText(message) {
  const { speed, usage, finish, state, request } = message;
  const parts = [];
  const count = usage?.answer ?? speed?.count;
  if (count) parts.push(`${count} tokens`);
  if (speed?.rate) parts.push(`${speed.rate.toFixed(1)} tokens/s`);
  if (speed?.first) parts.push(`first after ${(speed.first / 1000).toFixed(2)} s`);
  if (usage?.prompt) parts.push(`prompt ${usage.prompt}${usage.cached ? ` (${usage.cached} from the cache)` : ''}`);
  if (request && state !== 'writing') parts.push(`seed ${request.seed}`);
  if (state === 'stopped') parts.push('stopped');
  else if (finish === 'length') parts.push('ended at the limit of tokens');
  else if (finish && finish !== 'stop') parts.push(finish);
  return parts.join(' · ');
}

function replayText(replay) {
  if (replay.running) return `Replay: ${replay.count} tokens so far`;
  if (replay.error) return `Replay failed: ${replay.error}`;
  if (!replay.same) return `Not the same: differs at character ${replay.at + 1}${replay.part === 'reasoning' ? ' of the thinking' : ''}${replay.moved ? ' (the server says that its model or settings are others now)' : ''}`;
  const odds = replay.odds === null ? '' : replay.odds ? ', and so are all probabilities' : ', but probabilities differ';
  return replay.whole ? `Same answer: all ${replay.length} characters are equal${odds}` : `Same answer as far as it went: ${replay.length} characters${odds}`;
}

// ‹ 2 / 3 › between the branches of a message.
function branchNodes(conversation, message, acts) {
  const all = siblingsOf(conversation, message);
  if (all.length < 2) return null;
  const at = all.indexOf(message);
  const step = (text, title, to) => {
    const b = button(text, title, () => acts.branch(all[to]));
    b.disabled = !all[to];
    b.setAttribute('aria-label', title);
    return b;
  };
  return el('span', { role: 'group', 'aria-label': `Version ${at + 1} of ${all.length}` },
    step('‹', 'Version before', at - 1), ` ${at + 1} / ${all.length} `, step('›', 'Next version', at + 1));
}

function editNode(message, acts, close) {
  const area = el('textarea', { 'aria-label': 'Text of the message' });
  area.value = message.content;
  const save = () => {
    if (message.role === 'user' && acts.busy()) {
      notice('Another answer is being written; stop it first.');
      return;
    }
    close();
    acts.edit(message, area.value);
  };
  area.addEventListener('keydown', event => {
    if (event.key === 'Escape') {
      event.stopPropagation();
      close();
    } else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) save();
  });
  const node = el('div', {}, area, el('div', { class: 'bar end' },
    button('Cancel', 'Leave it as it is (Esc)', close), button(message.role === 'user' ? 'Send' : 'Save', 'As a new version (Ctrl+Enter)', save, { class: 'main' })));
  return { node, focus: () => area.focus() };
}

// The element of a message. `element.update()` shows what has become of it since.
function messageNode(conversation, message, acts) {
  const mine = message.role === 'user';
  const body = el('div', { class: 'body' });
  const thought = el('div', { class: 'body' });
  const thinking = el('details', { class: 'thinking', hidden: true }, el('summary', { text: 'Thinking' }), thought);
  const problem = el('p', { class: 'problem', role: 'alert' });
  const facts = el('span', { class: 'facts' });
  const replay = el('span', { class: 'replay' });
  const other = el('details', { class: 'thinking', hidden: true }, el('summary', { text: 'What came this time' }), el('div', { class: 'body' }));
  const tools = el('div', { class: 'tools' });
  const node = el('article', { class: `message ${message.role}`, id: `message-${message.id}`, tabindex: '-1', 'aria-label': mine ? 'You' : 'Answer' },
    el('h2', { text: mine ? 'You' : message.model ?? 'Answer' }), problem, mine ? [] : thinking, body, tools, mine ? [] : other);
  let odds = false, editing = false;

  const edit = () => {
    if (editing) return;
    editing = true;
    const close = () => {
      editing = false;
      editor.node.remove();
      body.hidden = tools.hidden = false;
      node.querySelector('[data-act="edit"]')?.focus();
    };
    const editor = editNode(message, acts, close);
    body.after(editor.node);
    body.hidden = tools.hidden = true;
    editor.focus();
  };
  const toggle = () => {
    odds = !odds;
    hideTip();
    body.shown = body.tokens = undefined;
    body.replaceChildren();
    node.update();
    if (odds) body.firstChild.focus({ preventScroll: true });
  };
  const act = (name, text, title, run, more = {}) => button(text, title, run, { 'data-act': name, ...more });
  const odd = act('odds', 'Probabilities', 'Show how likely each token was', toggle, { 'aria-pressed': 'false' });
  const change = act('edit', 'Edit', mine ? 'Change it and send it again (Alt+E)' : 'Change it as a new version', edit);
  const again = act('replay', 'Replay', 'Ask once more with the same seed and compare', () => acts.replay(message));
  const answerTools = [
    act('regenerate', 'Regenerate', 'Another answer, with another seed unless the settings have one (Alt+R)', () => acts.regenerate(message)), again, odd];

  node.edit = edit;
  node.update = () => {
    const writing = message.state === 'writing';
    node.dataset.state = message.state ?? 'done';
    const parts = mine ? { thinking: '', answer: message.content } : splitThinking(message.content);
    const thoughts = [message.reasoning, parts.thinking].filter(Boolean).join('\n\n');
    thinking.hidden = !thoughts;
    if (thoughts) showMarkdown(thought, thoughts);
    thinking.querySelector('summary').textContent = writing && !parts.answer ? 'Thinking…' : 'Thinking';
    if (mine) body.textContent = message.content;
    else if (odds && !writing) {
      // what is there has the focus, perhaps
      if (body.tokens !== message.tokens) body.replaceChildren(tokensNode(message));
      body.tokens = message.tokens;
    }
    else showMarkdown(body, parts.answer);
    problem.textContent = message.error ? `${message.error.message}${message.error.retryAfter ? ` Try again in ${message.error.retryAfter} s.` : ''}` : '';
    facts.textContent = mine ? '' : speedText(message) + (message.edited ? 'edited by hand' : '');
    odd.hidden = writing || !message.tokens?.length;
    change.hidden = writing;
    odd.setAttribute('aria-pressed', String(odds));
    again.hidden = !message.request || message.state === 'failed';
    if (!mine && message.request) again.title = `Ask once more with seed ${message.request.seed} and compare`;
    replay.textContent = message.replay ? replayText(message.replay) : '';
    replay.dataset.same = String(message.replay?.same ?? '');
    other.hidden = !(message.replay?.same === false);
    if (!other.hidden) showMarkdown(other.lastChild, message.replay.text);
    for (const b of tools.querySelectorAll('[data-act="regenerate"], [data-act="replay"]')) b.disabled = acts.busy();
    tools.hidden = editing || (writing && !facts.textContent);
  };
  tools.append(copyButton('Copy the text', () => (mine ? message.content : splitThinking(message.content).answer)),
    change);
  if (!mine) tools.append(...answerTools);
  tools.append(...[branchNodes(conversation, message, acts), ...(mine ? [] : [facts, replay])].filter(Boolean));
  node.update();
  return node;
}
