// What the server says about itself and its model: counters as they change, and what `inspect` and `doctor` found.

let inspection = null;
let watching = 0;

async function readInspection() {
  inspection ??= await getJson('v1/inspect').catch(e => {
    if (e.status === 404) return { inspect: null, doctor: null, defaults: null };
    throw e;
  });
  return inspection;
}

const sizeText = bytes => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(2)} MB` : `${Math.round(bytes / 1e3)} kB`);
const countText = n => (n >= 1e9 ? `${(n / 1e9).toFixed(2)} B` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : String(n));
const tight = text => el('td', { class: 'tight', text });

function tableOf(head, rows, more = {}) {
  return el('div', { class: 'wide', tabindex: '0', role: 'group', 'aria-label': more.label ?? 'Table' },
    el('table', more, head && el('thead', {}, el('tr', {}, head.map(h => el('th', { scope: 'col', text: h })))),
      el('tbody', {}, rows.map(r => el('tr', {}, r.map((c, i) => (c instanceof Node ? c : i === 0 ? el('th', { scope: 'row', text: c }) : el('td', { text: c }))))))));
}

function gaugesNode() {
  const box = el('div', { class: 'gauges' });
  box.update = m => {
    const rate = m.prefix_cache_queries_total > 0 ? m.prefix_cache_hits_total / m.prefix_cache_queries_total : undefined;
    const share = v => (v === undefined ? undefined : `${(v * 100).toFixed(1)} %`);
    const all = [
      ['requests running', m.num_requests_running], ['waiting', m.num_requests_waiting],
      ['of the cache in use', share(m.kv_cache_usage_perc)], ['of prompt tokens from the prefix cache', share(rate)],
      ['prompt tokens', m.prompt_tokens_total], ['tokens generated', m.generation_tokens_total],
    ];
    box.replaceChildren(...all.filter(([, v]) => v !== undefined).map(([label, v]) => el('div', { class: 'gauge' }, el('b', { text: String(v) }), el('span', { text: label }))));
  };
  return box;
}

// Modules that differ in their layer's number only are one line.
function groupsOf(modules) {
  const groups = new Map();
  for (const m of modules) {
    const name = m.module.replace(/\.\d+(?=\.|$)/g, '.*');
    const scheme = m.quantized
      ? [`${m.bits}-bit`, m.group_size === -1 ? 'one group a column' : `group ${m.group_size}`, m.sym ? 'symmetric' : 'asymmetric', m.act_order && 'act-order', m.refused && 'not read'].filter(Boolean).join(', ')
      : `${m.dtype} dense`;
    const key = JSON.stringify([name, m.in_features, m.out_features, scheme, m.kernel]);
    const g = groups.get(key) ?? { name, scheme, k: m.in_features, n: m.out_features, kernel: m.kernel, count: 0, bytes: 0, weights: 0, evidence: m.zero_point_evidence, dialect: m.zero_point_dialect };
    g.count += 1;
    g.bytes += m.bytes;
    g.weights += m.in_features * m.out_features;
    groups.set(key, g);
  }
  return [...groups.values()];
}

// Bits by layer and kind of module. Of experts the fewest and the most.
function gridNode(modules) {
  const kinds = new Map(), layers = new Map();
  for (const m of modules) {
    const found = /\.(\d+)\.(.+)$/.exec(m.module.replace(/experts\.\d+/, 'experts'));
    if (!found) continue;
    const bits = m.quantized ? m.bits : Math.round(m.bits_per_weight);
    kinds.set(found[2], true);
    const row = layers.get(+found[1]) ?? new Map();
    row.set(found[2], [...(row.get(found[2]) ?? []), bits]);
    layers.set(+found[1], row);
  }
  if (!layers.size) return null;
  const cell = bits => {
    if (!bits) return el('td', { text: '' });
    const [low, high] = [bits.reduce((a, b) => Math.min(a, b)), bits.reduce((a, b) => Math.max(a, b))];
    return el('td', { class: `b${low}`, text: low === high ? String(low) : `${low}–${high}` });
  };
  const rows = [...layers].sort(([a], [b]) => a - b).map(([n, row]) => [String(n), ...[...kinds.keys()].map(k => cell(row.get(k)))]);
  return tableOf(['layer', ...kinds.keys()], rows, { class: 'grid', label: 'Bits of each module' });
}

const outcomeNode = outcome => el('td', { class: outcome === 'runs' ? 'good' : outcome === 'refuses' ? 'bad' : 'odd', text: outcome });

function findingNode(f) {
  const kind = ['error', 'warning'].includes(f.severity) ? f.severity : f.severity === 'note' ? 'note' : 'error';
  const part = (name, text) => text && [el('dt', { text: name }), el('dd', { text })];
  return el('div', { class: `finding ${kind}` }, el('h3', {}, el('span', { class: { error: 'bad', warning: 'odd' }[kind], text: `${f.severity}: ` }), f.subject),
    el('dl', {}, part('found', f.evidence), part('consequence', f.consequence), part('remedy', f.remedy)));
}

function doctorNodes(doctor) {
  if (!doctor) return [el('p', { text: 'doctor examines folders; this model is none (the built-in one), or the server does not tell.' })];
  return [
    el('p', { class: doctor.sound ? 'good' : 'odd', text: doctor.sound ? 'Nothing is wrong with the folder.' : 'Something is wrong or odd with the folder.' }),
    (doctor.findings ?? []).map(findingNode),
    doctor.engines?.length ? [el('h2', { text: 'Other programs' }), tableOf(['program', 'outcome', 'why'], doctor.engines.map(e => [e.engine, outcomeNode(e.outcome), e.why]))] : null,
  ];
}

function modelNodes(report) {
  if (!report) return [el('p', { text: 'This server does not tell what its model is made of (it has no v1/inspect).' })];
  const facts = [
    ['name', report.name], ['architecture', `${report.model_type}${report.supported === false ? ' (not supported)' : ''}`],
    ['parameters', countText(report.parameters)], ['files', sizeText(report.bytes)], ['bits a weight', report.bits_per_weight?.toFixed(2)],
    ['runs on', report.isa], ['processor', report.cpu_features?.join(' ')],
    ['vLLM would', report.vllm && `${report.vllm.outcome}: ${report.vllm.why}`],
  ].filter(([, v]) => v !== undefined && v !== null);
  const warnings = report.warnings ?? [];
  return [
    tableOf(null, facts.map(([k, v]) => [k, String(v)]), { class: 'facts', label: 'The model' }),
    warnings.length ? [el('h2', { text: 'Warnings' }), el('ul', {}, warnings.map(w => el('li', { text: typeof w === 'string' ? w : JSON.stringify(w) })))] : null,
  ];
}

function modulesNodes(modules) {
  if (!modules?.length) return [];
  return [
    el('h2', { text: 'Modules' }),
    tableOf(['module', '', 'shape', 'weights', 'zero points', 'bits a weight', 'size', 'kernel'], groupsOf(modules).map(g => [
      g.name, g.count > 1 ? `×${g.count}` : '', tight(`${g.k} × ${g.n}`), g.scheme,
      // `v1: how it is stored`
      g.dialect ? el('td', { title: `${g.dialect}: ${g.evidence}`, text: g.dialect.split(':')[0] }) : '',
      ((g.bytes * 8) / g.weights).toFixed(2), tight(sizeText(g.bytes)), tight(g.kernel)])),
    el('h2', { text: 'Bits by layer' }),
    gridNode(modules),
  ];
}

const rawNode = (title, value) => value && el('details', { class: 'raw' }, el('summary', { text: title }), copyButton('Copy this JSON', () => JSON.stringify(value, null, 2)), el('pre', { tabindex: '0', text: JSON.stringify(value, null, 2) }));

async function showInspector() {
  const box = byId('inspector');
  const gauges = gaugesNode(), version = el('span', {});
  box.replaceChildren(el('h2', { text: 'Now' }), gauges, el('p', { text: 'Reading what inspect and doctor say…' }));
  const look = async () => {
    if (box.hidden || !box.contains(gauges)) return clearInterval(watching);
    if (document.hidden) return;
    await metrics().then(gauges.update, e => gauges.replaceChildren(el('span', { text: e.status === 404 ? 'This server has no metrics.' : e.message })));
  };
  clearInterval(watching);
  watching = setInterval(look, 2000);
  await look();
  getJson('version').then(v => { version.textContent = `Server version ${v.version}.`; }, () => {});
  try {
    const found = await readInspection();
    box.replaceChildren(el('h2', { text: 'Now' }), gauges, el('p', {}, version),
      el('h2', { text: 'What inspect says' }), ...modelNodes(found.inspect).flat(Infinity).filter(Boolean),
      el('h2', { text: 'What doctor says' }), ...doctorNodes(found.doctor).flat(Infinity).filter(Boolean),
      ...modulesNodes(found.inspect?.modules).filter(Boolean),
      el('h2', { text: 'As JSON' }), ...[rawNode('inspect', found.inspect), rawNode('doctor', found.doctor)].filter(Boolean));
    announce('The inspector is filled');
  } catch (e) {
    box.replaceChildren(el('h2', { text: 'Now' }), gauges, el('p', { class: 'problem', role: 'alert', text: e.message }), button('Try again', 'Ask the server once more', showInspector));
    if (e.status === 401) askForKey('');
  }
}
