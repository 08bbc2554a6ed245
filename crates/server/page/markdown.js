// Markdown to a tree of blocks, which are plain data: {kind, …}. HTML in it is text like any other.
// No pattern may try two ways to share out the same spaces: a long line would take time by the square of its length.

const BULLET = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: (.*))?$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const DIVIDER = /^\|? *:?-+:? *(\| *:?-+:? *)*\|?$/;

const indentOf = line => line.length - line.trimStart().length;

function cells(line) {
  const row = line.trim().replace(/^\|/, '').replace(/([^\\]|^)\|$/, '$1');
  const out = [''];
  let code = false;
  for (let i = 0; i < row.length; i++) {
    if (row[i] === '\\' && row[i + 1] === '|') out[out.length - 1] += row[++i];
    else if (row[i] === '|' && !code) out.push('');
    else {
      if (row[i] === '`') code = !code;
      out[out.length - 1] += row[i];
    }
  }
  return out.map(c => c.trim());
}

// Whether a line begins something that ends a paragraph.
function begins(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || /^ {0,3}>/.test(line) || BULLET.test(line);
}

// A list from line `at` on: its items' lines, less their indentation.
function listAt(lines, at, depth) {
  const first = BULLET.exec(lines[at]);
  const base = first[1].length;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let i = at, inset = 0, blank = false;
  while (i < lines.length) {
    const line = lines[i];
    if (!line.trim()) {
      blank = true;
      items.at(-1).push('');
      i++;
      continue;
    }
    const mark = BULLET.exec(line);
    const indent = indentOf(line);
    if (mark && indent <= base + 1 && !RULE.test(line)) {
      if (/\d/.test(mark[2]) !== ordered) break;
      // a marker of one to four spaces; more of them are part of the text
      inset = indent + mark[2].length + Math.min(mark[3].length || 1, 4);
      items.push([line.slice(inset)]);
    } else if (indent > base + 1 || (indent > base && !mark)) {
      items.at(-1).push(line.slice(Math.min(indent, inset)));
    } else if (!blank && !begins(line)) {
      items.at(-1).push(line);
    } else break;
    blank = false;
    i++;
  }
  const list = items.map(lines => {
    const task = /^\[([ xX])\] +/.exec(lines[0]);
    if (task) lines[0] = lines[0].slice(task[0].length);
    return { task: task ? task[1] !== ' ' : null, blocks: parseBlocks(lines, depth + 1) };
  });
  return { end: i, block: { kind: 'list', ordered, start: ordered ? parseInt(first[2], 10) : 1, items: list } };
}

function parseBlocks(lines, depth = 0) {
  const out = [];
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    if (!line.trim()) {
      i++;
      continue;
    }
    const fence = FENCE.exec(line);
    if (fence) {
      const inset = indentOf(line), body = [];
      const closes = new RegExp(`^ {0,3}\\${fence[1][0]}{${fence[1].length},}\\s*$`);
      let j = i + 1;
      while (j < lines.length && !closes.test(lines[j])) {
        body.push(lines[j].slice(Math.min(inset, indentOf(lines[j]))));
        j++;
      }
      out.push({ kind: 'code', language: fence[2].trim().split(' ')[0], text: body.join('\n') });
      i = j + 1;
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      out.push({ kind: 'heading', level: heading[1].length, text: (heading[2] ?? '').trim().replace(/(^| )#+$/, '').trim() });
      i++;
      continue;
    }
    if (RULE.test(line)) {
      out.push({ kind: 'rule' });
      i++;
      continue;
    }
    if (/^ {0,3}>/.test(line) && depth < DEEPEST) {
      const inside = [];
      while (i < lines.length && /^ {0,3}>/.test(lines[i])) inside.push(lines[i++].replace(/^ {0,3}> ?/, ''));
      out.push({ kind: 'quote', blocks: parseBlocks(inside, depth + 1) });
      continue;
    }
    if (BULLET.test(line) && depth < DEEPEST) {
      const { end, block } = listAt(lines, i, depth);
      out.push(block);
      i = end;
      continue;
    }
    if (line.includes('|') && DIVIDER.test((lines[i + 1] ?? '').trim()) && cells(line).length === cells(lines[i + 1]).length) {
      const align = cells(lines[i + 1]).map(c => (c.endsWith(':') ? (c.startsWith(':') ? 'center' : 'right') : 'left'));
      const head = cells(line), rows = [];
      i += 2;
      while (i < lines.length && lines[i].includes('|') && lines[i].trim()) {
        const row = cells(lines[i++]);
        rows.push(head.map((_, c) => row[c] ?? ''));
      }
      out.push({ kind: 'table', align, head, rows });
      continue;
    }
    const text = [line.trimStart()];
    i++;
    while (i < lines.length && lines[i].trim() && !begins(lines[i])) text.push(lines[i++].trimStart());
    out.push({ kind: 'text', text: text.join('\n') });
  }
  return out;
}

const parseMarkdown = text => parseBlocks(text.replaceAll('\t', '    ').split(/\r\n|\r|\n/));
