// The probability of each token, and of the likeliest in its place: by pointer or with the arrow keys.

// From surprising to expected.
const STEPS = [0.05, 0.2, 0.5, 0.8];
const stepOf = odds => STEPS.filter(s => odds >= s).length;
const percent = odds => (odds >= 0.0995 ? `${(odds * 100).toFixed(0)} %` : odds >= 0.0001 ? `${(odds * 100).toFixed(2)} %` : '< 0.01 %');
// Spaces and line ends are tokens that can be seen, too.
const visible = text => (text === '' ? '∅' : text.replaceAll('\n', '⏎').replaceAll('\t', '⇥').replaceAll(' ', '·'));

function tipOf(token) {
  const [text, logprob, top] = token;
  const rank = top.findIndex(t => t[0] === text && t[1] === logprob);
  const rows = rank < 0 ? [...top, [text, logprob]] : top;
  return [
    el('div', { text: `${visible(text)}  ${percent(Math.exp(logprob))}, logarithm ${logprob.toFixed(3)}` }),
    el('table', {}, el('tbody', {}, rows.map((t, i) => el('tr', { class: (rank < 0 ? i === rows.length - 1 : i === rank) ? 'chosen' : null },
      el('td', { text: visible(t[0]) }),
      el('td', {}, el('meter', { min: 0, max: 1, value: Math.exp(t[1]), 'aria-hidden': 'true' })),
      el('td', { text: percent(Math.exp(t[1])) }))))),
  ];
}

function hideTip() {
  byId('tip').hidden = true;
}

function showTip(span, token) {
  const tip = byId('tip');
  tip.replaceChildren(...tipOf(token));
  tip.hidden = false;
  const at = span.getBoundingClientRect();
  const below = at.bottom + tip.offsetHeight + 8 < innerHeight;
  tip.style.left = `${Math.max(4, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, below ? at.bottom + 6 : at.top - tip.offsetHeight - 6)}px`;
}

// The text of an answer, token by token.
function tokensNode(message) {
  const box = el('div', { class: 'tokens', tabindex: '0', role: 'listbox', 'aria-label': 'Tokens of the answer with their probabilities; arrow keys walk through them' });
  const spans = message.tokens.map((token, n) => {
    const odds = Math.exp(token[1]);
    const likely = token[2].map(t => `${visible(t[0])} ${percent(Math.exp(t[1]))}`).join(', ');
    return el('span', {
      id: `token-${message.id}-${n}`, class: `token p${stepOf(odds)}`, role: 'option', 'aria-selected': 'false', text: token[0] || '∅',
      'aria-label': `${visible(token[0])}, ${percent(odds)}${likely && `; likeliest: ${likely}`}`,
    });
  });
  let here = -1;
  const walk = n => {
    const to = Math.max(0, Math.min(spans.length - 1, n));
    if (spans[here]) {
      spans[here].classList.remove('here');
      spans[here].setAttribute('aria-selected', 'false');
    }
    here = to;
    spans[here].classList.add('here');
    spans[here].setAttribute('aria-selected', 'true');
    box.setAttribute('aria-activedescendant', spans[here].id);
    spans[here].scrollIntoView({ block: 'nearest' });
    showTip(spans[here], message.tokens[here]);
  };
  box.addEventListener('mouseover', event => {
    const n = spans.indexOf(event.target);
    if (n >= 0) showTip(spans[n], message.tokens[n]);
  });
  box.addEventListener('mouseleave', hideTip);
  box.addEventListener('blur', hideTip);
  box.addEventListener('keydown', event => {
    const to = { ArrowRight: here + 1, ArrowDown: here + 10, ArrowLeft: here - 1, ArrowUp: here - 10, Home: 0, End: spans.length - 1 }[event.key];
    if (event.key === 'Escape') hideTip();
    if (to === undefined || event.altKey || event.ctrlKey || !spans.length) return;
    event.preventDefault();
    walk(to);
  });
  box.append(...spans);
  return box;
}
