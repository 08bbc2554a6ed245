// What stands inside a line of Markdown: a list of texts and of {kind, …} with parts of their own.
// Every search that can fail fails once for the whole text, so that hostile texts take time in proportion to their length.

const DEEPEST = 12;
const PUNCTUATION = /[!-/:-@[-`{-~]/;

// Where each `[` closes, and where each run of backticks that opens code closes.
function pairs(text) {
  const brackets = new Map(), code = new Map(), open = [], runs = [];
  for (const run of text.matchAll(/`+/g)) runs.push({ at: run.index, long: run[0].length });
  const next = new Map();
  for (let i = runs.length - 1; i >= 0; i--) {
    const { at, long } = runs[i];
    if (next.has(long)) code.set(at, { long, close: next.get(long) });
    next.set(long, at);
  }
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '\\') i++;
    else if (code.has(i)) i = code.get(i).close + code.get(i).long - 1;
    else if (text[i] === '[') open.push(i);
    else if (text[i] === ']' && open.length) brackets.set(open.pop(), i);
  }
  return { brackets, code };
}

// The target of a link, or null if it is none that a click may follow.
function safeTarget(target) {
  const trimmed = target.trim();
  if (!/^(https?:\/\/|mailto:)/i.test(trimmed)) return null;
  try {
    return ['http:', 'https:', 'mailto:'].includes(new URL(trimmed).protocol) ? trimmed : null;
  } catch {
    return null;
  }
}

// `(target "title")` at `at`: the target and the end.
function targetAt(text, at) {
  if (text[at] !== '(') return null;
  let depth = 0, i = at;
  for (; i < text.length && i - at < 4000; i++) {
    if (text[i] === '\\') i++;
    else if (text[i] === '\n') return null;
    else if (text[i] === '(') {
      if (++depth > 32) return null;
    } else if (text[i] === ')' && --depth === 0) break;
  }
  if (text[i] !== ')') return null;
  const inside = text.slice(at + 1, i).trim().replace(/\s+("[^"]*"|'[^']*')$/, '');
  return { target: inside.replace(/^<(.*)>$/, '$1'), end: i + 1 };
}

// Where the run of emphasis that opens before `from` closes.
function closeOf(text, from, mark, code) {
  for (let i = from; i < text.length; i++) {
    if (text[i] === '\\') i++;
    else if (code.has(i)) i = code.get(i).close + code.get(i).long - 1;
    else if (text.startsWith(mark, i)) {
      let run = mark.length;
      while (text[i + run] === mark[0]) run++;
      const inWord = mark[0] === '_' && /\w/.test(text[i + run] ?? '');
      // one mark inside a pair of two is not the end of one, and the other way about
      const fits = run === mark.length || (run === 3 && mark[0] !== '~');
      // of three, the outer pair takes the last
      if (fits && i > from && !/\s/.test(text[i - 1]) && !inWord) return i + run - mark.length;
      i += run - 1;
    }
  }
  return -1;
}

function parseInline(text, depth = 0, inLink = false) {
  const out = [];
  let plain = '';
  const flush = () => {
    if (plain) out.push(plain);
    plain = '';
  };
  const add = part => {
    flush();
    out.push(part);
  };
  if (depth > DEEPEST) return [text];
  const { brackets, code } = pairs(text);
  const hopeless = new Set();
  for (let i = 0; i < text.length;) {
    const c = text[i];
    if (c === '\\' && PUNCTUATION.test(text[i + 1] ?? '')) {
      plain += text[i + 1];
      i += 2;
      continue;
    }
    if (c === '\n') {
      plain = plain.trimEnd();
      add({ kind: 'break' });
      i++;
      continue;
    }
    if (c === '`') {
      const run = code.get(i);
      if (run) {
        const inside = text.slice(i + run.long, run.close).replaceAll('\n', ' ');
        add({ kind: 'code', text: /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside });
        i = run.close + run.long;
        continue;
      }
      const long = /^`+/.exec(text.slice(i, i + 1000))[0].length;
      plain += text.slice(i, i + long);
      i += long;
      continue;
    }
    const image = c === '!' && text[i + 1] === '[';
    if ((c === '[' || image) && !inLink) {
      const start = image ? i + 1 : i;
      const close = brackets.get(start);
      const found = close === undefined ? null : targetAt(text, close + 1);
      const target = found && safeTarget(found.target);
      if (target) {
        const label = text.slice(start + 1, close);
        // a picture would be fetched from elsewhere, so it is a link
        add({ kind: 'link', target, parts: label ? parseInline(label, depth + 1, true) : [target] });
        i = found.end;
        continue;
      }
    }
    const auto = !inLink && (c === '<' || c === 'h' || c === 'H') && !/\w/.test(text[i - 1] ?? '');
    if (auto) {
      const found = c === '<' ? /^<([a-z][a-z+.-]*:[^\s<>]*)>/i.exec(text.slice(i, i + 2100)) : /^https?:\/\/[^\s<>]+/i.exec(text.slice(i, i + 2100));
      let shown = found && (c === '<' ? found[1] : found[0].replace(/[*_~`'")\]}.,;:!?]+$/, ''));
      const target = shown && safeTarget(shown);
      if (target) {
        add({ kind: 'link', target, parts: [shown] });
        i += c === '<' ? found[0].length : shown.length;
        continue;
      }
    }
    if (c === '*' || c === '_' || c === '~') {
      const three = text.startsWith(c + c + c, i) && c !== '~' && !hopeless.has(c + c + c);
      const mark = three ? c + c + c : text[i + 1] === c ? c + c : c;
      const after = text[i + mark.length] ?? ' ';
      const inWord = c === '_' && /\w/.test(text[i - 1] ?? '');
      if (mark !== '~' && !/\s/.test(after) && !inWord && !hopeless.has(mark)) {
        const close = closeOf(text, i + mark.length, mark, code);
        if (close > 0) {
          const kind = { '**': 'strong', __: 'strong', '~~': 'del' }[mark] ?? 'em';
          const parts = parseInline(text.slice(i + mark.length, close), depth + 1, inLink);
          add({ kind, parts: three ? [{ kind: 'strong', parts }] : parts });
          i = close + mark.length;
          continue;
        }
        hopeless.add(mark);
        if (three) continue;
      }
      plain += mark;
      i += mark.length;
      continue;
    }
    plain += c;
    i++;
  }
  flush();
  return out;
}
