// What a request asks for besides its messages. A field that is left empty is not sent: the server's default holds.

const NUMBERS = [
  { key: 'temperature', label: 'Temperature', min: 0, max: 2, step: 'any', help: '0 to 2; 0 takes the likeliest token' },
  { key: 'top_p', label: 'Top p', min: 0, max: 1, above: true, step: 'any', help: 'above 0, to 1' },
  { key: 'top_k', label: 'Top k', min: -1, max: 1e6, step: '1', help: 'tokens; 0 or -1 is off' },
  { key: 'min_p', label: 'Min p', min: 0, max: 1, step: 'any', help: '0 to 1; 0 is off' },
  { key: 'repetition_penalty', label: 'Repetition penalty', min: 0, max: 10, above: true, step: 'any', help: '1 is off' },
  { key: 'presence_penalty', label: 'Presence penalty', min: -2, max: 2, step: 'any', help: '-2 to 2; 0 is off' },
  { key: 'frequency_penalty', label: 'Frequency penalty', min: -2, max: 2, step: 'any', help: '-2 to 2; 0 is off' },
  { key: 'max_completion_tokens', label: 'Most tokens of an answer', min: 1, max: 1e9, step: '1', help: 'thinking included' },
  { key: 'seed', label: 'Seed', min: 0, max: Number.MAX_SAFE_INTEGER, step: '1', help: 'empty: a new one for each answer' },
];
// What of a request is kept beside its answer.
const REQUEST_KEYS = [...NUMBERS.map(f => f.key), 'model', 'stop', 'chat_template_kwargs', 'logprobs', 'top_logprobs'];
const SETTINGS = 'billfish.settings';
const EMPTY = { stop: '', thinking: '', probabilities: true, system: '' };

function readSettings() {
  try {
    return { ...EMPTY, ...JSON.parse(localStorage.getItem(SETTINGS) ?? '{}') };
  } catch {
    return { ...EMPTY };
  }
}

const writeSettings = settings => localStorage.setItem(SETTINGS, JSON.stringify(settings));

// The fields of a request that the settings speak of.
function requestFields(settings) {
  const out = {};
  for (const { key } of NUMBERS) if (typeof settings[key] === 'number') out[key] = settings[key];
  out.seed ??= freshSeed();
  const escapes = { n: '\n', t: '\t', '\\': '\\' };
  const stop = settings.stop.split('\n').filter(s => s !== '').map(s => s.replace(/\\([nt\\])/g, (_, c) => escapes[c]));
  if (stop.length) out.stop = stop;
  if (settings.thinking) out.chat_template_kwargs = { enable_thinking: settings.thinking === 'on' };
  if (settings.probabilities) Object.assign(out, { logprobs: true, top_logprobs: 5 });
  return out;
}

// Why a field's text is no value for it, or its value.
function readNumber(field, text) {
  if (text === '') return { value: null };
  const value = Number(text);
  const range = `${field.label} must be a ${field.step === '1' ? 'whole number' : 'number'} ${field.above ? 'above' : 'from'} ${field.min} to ${field.max}.`;
  const fits = Number.isFinite(value) && value >= field.min && value <= field.max && !(field.above && value === field.min);
  return fits && (field.step === 'any' || Number.isSafeInteger(value)) ? { value } : { problem: range };
}

// The dialog. `saved` is called with the new settings.
function openSettings(settings, defaults, saved) {
  const dialog = byId('settings'), problem = byId('settings-error');
  const labelled = (key, label, input, help, whole = false) => {
    input.id = `set-${key}`;
    if (help) input.setAttribute('aria-describedby', `help-${key}`);
    return el('div', { class: whole ? 'whole' : null }, el('label', { for: input.id, text: label }), input, help && el('small', { id: `help-${key}`, text: help }));
  };
  const area = (value, rows) => Object.assign(el('textarea', { rows }), { value });
  const inputs = Object.fromEntries(NUMBERS.map(f => {
    const known = defaults?.[f.key] ?? (f.key === 'max_completion_tokens' ? defaults?.max_tokens : null);
    const unset = f.key === 'seed' ? 'chance' : known === null || known === undefined ? 'default' : `default: ${known}`;
    const input = el('input', { type: 'text', inputmode: 'decimal', autocomplete: 'off', placeholder: unset });
    input.value = settings[f.key] ?? '';
    return [f.key, input];
  }));
  const system = area(settings.system, 3), stop = area(settings.stop, 2);
  const thinking = el('select', {}, [['', 'as the template has it'], ['on', 'on'], ['off', 'off']].map(([v, t]) => el('option', { value: v, text: t })));
  thinking.value = settings.thinking;
  const odds = el('input', { type: 'checkbox', id: 'set-probabilities' });
  odds.checked = settings.probabilities;
  const key = button('API key…', 'Enter the key of this server', () => {
    dialog.close();
    askForKey('');
  });
  byId('fields').replaceChildren(
    labelled('system', 'System prompt', system, 'of this chat and of new ones', true),
    ...NUMBERS.map(f => labelled(f.key, f.label, inputs[f.key], f.help)),
    labelled('thinking', 'Thinking', thinking, 'for models whose template can switch it'),
    labelled('stop', 'Stop texts', stop, 'one a line, a line end in it as \\n; an answer ends before the first that comes up', true),
    el('div', { class: 'whole' }, el('label', { class: 'check' }, odds, ' Ask for the probabilities of tokens (to be seen with Probabilities under an answer)')),
    el('div', { class: 'whole' }, key));
  problem.textContent = '';
  byId('settings-cancel').onclick = () => dialog.close();
  byId('reset').onclick = () => {
    for (const input of Object.values(inputs)) input.value = '';
    thinking.value = stop.value = '';
  };
  dialog.querySelector('form').onsubmit = event => {
    event.preventDefault();
    const next = { system: system.value, stop: stop.value, thinking: thinking.value, probabilities: odds.checked };
    const problems = [];
    for (const f of NUMBERS) {
      const read = readNumber(f, inputs[f.key].value.trim());
      inputs[f.key].toggleAttribute('aria-invalid', false);
      if (read.problem) {
        inputs[f.key].setAttribute('aria-invalid', 'true');
        problems.push({ text: read.problem, input: inputs[f.key] });
      } else if (read.value !== null) next[f.key] = read.value;
    }
    problem.textContent = problems.map(p => p.text).join(' ');
    if (problems.length) {
      problems[0].input.focus();
      return;
    }
    dialog.close();
    saved(next);
  };
  dialog.showModal();
}
