// The tree of a Markdown text as elements. Blocks that did not change keep theirs, so that a reply that is
// still being written does not lose what is selected or scrolled.

function inlineNodes(parts) {
  return parts.map(part => {
    if (typeof part === 'string') return part;
    switch (part.kind) {
      case 'break': return el('br');
      case 'code': return el('code', { text: part.text });
      case 'link': return el('a', { href: part.target, target: '_blank', rel: 'noopener noreferrer' }, inlineNodes(part.parts));
      default: return el(part.kind, {}, inlineNodes(part.parts));
    }
  });
}

const inline = text => inlineNodes(parseInline(text));

function listItem(item) {
  const box = item.task === null ? null : el('input', { type: 'checkbox', disabled: true, checked: item.task, 'aria-label': item.task ? 'done' : 'open' });
  // a single paragraph stands in the item itself
  const [first, ...rest] = item.blocks;
  const inside = first?.kind === 'text' ? [inline(first.text), rest.map(blockNode)] : item.blocks.map(blockNode);
  return el('li', {}, box, box && ' ', inside);
}

function codeBlock(block) {
  const code = el('code', { text: block.text });
  const figure = el('figure', { class: 'code' },
    el('figcaption', {}, el('span', { text: block.language || 'text' }), copyButton('Copy this code', () => code.textContent)),
    el('pre', { tabindex: '0', 'aria-label': `Code, ${block.language || 'text'}` }, code));
  figure.code = code;
  return figure;
}

function blockNode(block) {
  switch (block.kind) {
    case 'heading': return el(`h${block.level}`, {}, inline(block.text));
    case 'rule': return el('hr');
    case 'code': return codeBlock(block);
    case 'quote': return el('blockquote', {}, block.blocks.map(blockNode));
    case 'list': {
      const start = block.ordered && block.start !== 1 ? String(block.start) : null;
      return el(block.ordered ? 'ol' : 'ul', { start }, block.items.map(listItem));
    }
    case 'table': {
      const row = (tag, texts) => el('tr', {}, texts.map((t, c) => el(tag, { class: block.align[c] }, inline(t))));
      return el('div', { class: 'wide', tabindex: '0', role: 'group', 'aria-label': 'Table' },
        el('table', {}, el('thead', {}, row('th', block.head)), el('tbody', {}, block.rows.map(r => row('td', r)))));
    }
    default: return el('p', {}, inline(block.text));
  }
}

// Shows `text` in `container`.
function showMarkdown(container, text) {
  const blocks = parseMarkdown(text);
  const keys = blocks.map(b => JSON.stringify(b));
  const before = container.shown ?? [];
  blocks.forEach((block, i) => {
    if (before[i]?.key === keys[i]) return;
    const old = container.childNodes[i];
    if (old && block.kind === 'code' && before[i]?.block.kind === 'code' && before[i].block.language === block.language) {
      old.code.textContent = block.text;
    } else if (old) old.replaceWith(blockNode(block));
    else container.append(blockNode(block));
  });
  while (container.childNodes.length > blocks.length) container.lastChild.remove();
  container.shown = blocks.map((block, i) => ({ block, key: keys[i] }));
}
