'use strict';
// Draws the page from the JSON in #report-data (its fields: docs/analysis.md). Text from outside reaches the page through
// textContent only, and Plotly's labels through escaped().

const report = JSON.parse(document.getElementById('report-data').textContent);
const palette = ['#5b6f95', '#d1495b', '#2a9d8f', '#e09f3e', '#7b5ea7', '#4f9d3a', '#b5651d', '#3a7ca5', '#c2528b', '#8a8d34',
  '#16697a', '#a23b2a', '#555b6e'];
const runs = report.runs.map((run, index) => ({...run, colour: palette[index % palette.length]}));
const plotConfig = {displaylogo: false, displayModeBar: false, responsive: true};
const font = {family: 'system-ui, "DejaVu Sans", sans-serif', size: 13, color: '#1f2430'};

// Without a text (`tda report`) there is only what training wrote: losses in nats per token, zeros and empty rows.
const onText = report.text !== null;
const lossKeys = onText ? {train: 'train_bits_per_byte', validation: 'val_bits_per_byte', unit: 'bits per byte'} :
  {train: 'train_loss', validation: 'val_loss', unit: 'nats per token'};
const measuredRuns = runs.filter((run) => run.statistics);

const measures = [
  {key: 'sparsity', label: 'exact zeros', share: true,
   note: 'Share of pairs of tokens that the head ignores completely.'},
  {key: 'empty_rows', label: 'empty rows', share: true,
   note: 'Share of tokens for which the head finds nothing above its threshold.'},
  {key: 'survivors_per_row', label: 'survivors per row', share: false,
   note: 'Mean number of tokens that a token looks at.'},
  {key: 'effective_entropy', label: 'entropy', share: true,
   note: '1: attention spread evenly over everything visible; 0: a single token or none.'},
  {key: 'sink_ratio', label: 'sink ratio', share: false,
   note: 'Attention to the first token, relative to an even spread (1).'},
].filter((measure) => measuredRuns.every((run) => run.statistics.views[0][measure.key]));

const byId = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);
const fixed = (value, decimals) => isNumber(value) ? value.toFixed(decimals) : '–';
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Plotly reads a few HTML tags in labels.
function escaped(text) {
  return text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const percent = (share) => {
  const value = 100 * share;
  // 99.96 % shall not read as 100.
  return `${value > 99.9 && value < 100 || value > 0 && value < 0.1 ? value.toFixed(3) : value.toFixed(1)} %`;
};

function duration(seconds) {
  if (!isNumber(seconds)) return '–';
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${Math.floor(seconds / 60)} min ${String(Math.round(seconds % 60)).padStart(2, '0')} s`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function viewOf(run, name) {
  const views = run.statistics.views;
  return views.find((view) => view.name === name) ?? views[0];
}

function baseLayout(overrides) {
  return {
    font, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', hovermode: 'closest',
    margin: {l: 52, r: 12, t: 12, b: 44}, legend: {orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom'},
    ...overrides,
  };
}

const axis = (title, more = {}) => ({title: {text: title, standoff: 6}, gridcolor: '#e7eaf0', zeroline: false, ...more});

// --- results ---------------------------------------------------------------------------------------------------------

const countText = (count) => !isNumber(count) ? '–' :
  count >= 1e6 ? `${(count / 1e6).toFixed(2)} M` : count.toLocaleString('en');

// Columns of the table: title and the text of a run.
const shareOf = (key) => (run) => run.statistics ? percent(run.statistics.views[0].mean[key]) : '–';
const columns = [
  ['parameters', (run) => countText(run.parameters)],
  ...(onText ? [['bits per byte', (run) => fixed(run.score.bits_per_byte, 3)]] : [
    ['step', (run) => run.step.toLocaleString('en')],
    ['training loss', (run) => fixed(run.train_loss, 3)],
    ['validation loss', (run) => fixed(run.val_loss, 3)]]),
  ['exact zeros', shareOf('sparsity')],
  ...(onText ? [['sink ratio', (run) => fixed(run.statistics.views[0].mean.sink_ratio, 2)]] : []),
  ['empty rows', shareOf('empty_rows')],
  ['training time', (run) => duration(run.training_seconds)],
];

function drawResults() {
  const table = element('table', {}, element('thead', {}, element('tr', {},
    ...['model', ...columns.map(([title]) => title)].map((name) => element('th', {textContent: name})))));
  const body = element('tbody');
  const cell = (title, textContent) => {
    const node = element('td', {textContent});
    node.dataset.label = title;
    return node;
  };
  for (const run of runs) {
    const dot = element('span', {className: 'dot'});
    dot.style.background = run.colour;
    body.append(element('tr', {}, element('td', {}, dot, run.name),
      ...columns.map(([title, textOf]) => cell(title, textOf(run)))));
  }
  if (onText && report.text.xz_bits_per_byte) {
    const value = fixed(report.text.xz_bits_per_byte, 3);
    body.append(element('tr', {className: 'reference'}, element('td', {textContent: 'xz -9e, the same text'}),
      ...columns.map(([title]) => title === 'bits per byte' ? cell(title, value) : element('td', {className: 'blank'}))));
  }
  table.append(body);
  byId('results').append(table);
  byId('results-note').textContent = comparison();
}

function comparison() {
  const lossOf = (run) => onText ? run.score.bits_per_byte : run.val_loss;
  const baseline = runs.find((run) => run.mechanism === 'softmax' && isNumber(lossOf(run)));
  if (!baseline) return '';
  return runs.filter((run) => run !== baseline && isNumber(lossOf(run))).map((run) => {
    const change = 100 * (lossOf(run) / lossOf(baseline) - 1);
    return `${run.name} needs ${Math.abs(change).toFixed(1)} % ${change < 0 ? 'fewer' : 'more'} ` +
      `${onText ? 'bits' : 'nats'} than ${baseline.name}.`;
  }).join(' ');
}

// --- a grid over recipe keys -----------------------------------------------------------------------------------------

function gridTraces(key, values) {
  const numbers = values.map(Number);
  const position = numbers.every(Number.isFinite) ? Number : (value) => value;
  const others = (run) => JSON.stringify(Object.entries(run.grid).filter(([name]) => name !== key));
  const loss = (run) => run.val_loss ?? run.train_loss;
  return [...new Set(runs.map(others))].map((rest) => {
    const line = runs.filter((run) => others(run) === rest && isNumber(loss(run)));
    return {x: line.map((run) => position(run.grid[key])), y: line.map(loss), mode: 'lines+markers', showlegend: false,
            text: line.map((run) => escaped(run.name)), line: {color: '#c3c9d6', width: 1},
            marker: {size: 9, color: line.map((run) => run.colour)}, hovertemplate: '%{text}: %{y:.4f}<extra></extra>'};
  });
}

function drawGrid() {
  const varied = (report.grid ?? []).filter(({values}) => values.length > 1);
  if (!varied.length) {
    byId('grid').remove();
    return;
  }
  byId('grid-charts').append(...varied.map(() => element('div')));
  varied.forEach(({key, values}, place) => {
    const numbers = values.map(Number);
    const numeric = numbers.every(Number.isFinite);
    // Learning rates and sizes are chosen by factors, not by steps.
    const wide = numeric && Math.min(...numbers) > 0 && Math.max(...numbers) / Math.min(...numbers) >= 8;
    Plotly.newPlot(byId('grid-charts').children[place], gridTraces(key, values), baseLayout({
      height: 290, margin: {l: 58, r: 10, t: 16, b: 44}, yaxis: axis('nats per token'),
      xaxis: axis(escaped(key), numeric ? {type: wide ? 'log' : 'linear', tickvals: numbers, ticktext: values} :
        {type: 'category', categoryarray: values}),
    }), plotConfig);
  });
}

// --- learning curves -------------------------------------------------------------------------------------------------

const series = (run, key) => {
  const rows = run.history.filter((row) => isNumber(row[key]));
  return {x: rows.map((row) => row.step), y: rows.map((row) => row[key])};
};

function drawLoss() {
  const traces = [];
  const finals = [];
  for (const run of runs) {
    const train = series(run, lossKeys.train);
    const validation = series(run, lossKeys.validation);
    finals.push(...train.y.slice(-1), ...validation.y);
    traces.push({...train, mode: 'lines', name: `${escaped(run.name)}, training`, opacity: 0.5, showlegend: false,
                 line: {color: run.colour, width: 1}, hovertemplate: 'step %{x}: %{y:.3f}'});
    traces.push({...validation, mode: 'lines+markers', name: escaped(run.name),
                 line: {color: run.colour, width: 2}, marker: {size: 6}, hovertemplate: 'step %{x}: %{y:.3f}'});
  }
  if (!finals.length) {
    byId('learning').remove();
    return;
  }
  const xz = report.text?.xz_bits_per_byte;
  const lowest = Math.min(...finals, xz ?? Infinity);
  // The first steps fall from 8 bits; showing them would flatten everything that follows.
  const top = Math.max(2.2 * lowest, xz ? 1.25 * xz : 0);
  const layout = baseLayout({
    xaxis: axis('training step'), yaxis: axis(lossKeys.unit, {range: [0.9 * lowest, top]}),
    shapes: [], annotations: [],
  });
  if (xz) {
    layout.shapes.push({type: 'line', xref: 'paper', x0: 0, x1: 1, y0: xz, y1: xz, line: {color: '#8a90a0', dash: 'dash'}});
    layout.annotations.push({xref: 'paper', x: 1, xanchor: 'right', y: xz, yanchor: 'bottom', showarrow: false,
                             text: 'xz -9e', font: {color: '#5b6372', size: 12}});
  }
  Plotly.newPlot('loss-chart', traces, layout, plotConfig);
}

function drawSparsityHistory() {
  const traces = [];
  for (const run of runs) {
    const zeros = series(run, 'sparsity');
    if (!zeros.x.length) continue;
    traces.push({...zeros, mode: 'lines', name: escaped(run.name), line: {color: run.colour, width: 2},
                 hovertemplate: 'step %{x}: %{y:.2%}'});
    traces.push({...series(run, 'empty_rows'), mode: 'lines', name: `${escaped(run.name)}, empty rows`, showlegend: false,
                 line: {color: run.colour, width: 2, dash: 'dot'}, hovertemplate: 'step %{x}: %{y:.2%}'});
  }
  Plotly.newPlot('sparsity-history-chart', traces, baseLayout({
    xaxis: axis('training step'), yaxis: axis('share', {range: [-0.02, 1.02], tickformat: '.0%'})}), plotConfig);
}

// --- heads and layers ------------------------------------------------------------------------------------------------

const formatCell = (measure, value) => measure.share ? `${(100 * value).toFixed(value > 0.995 && value < 1 ? 1 : 0)}` :
  value >= 100 ? value.toFixed(0) : value.toPrecision(2);

function drawHeads() {
  const measure = measures[byId('measure').selectedIndex];
  byId('measure-note').textContent = measure.note + (measure.share ? ' In percent.' : '');
  const highest = measure.share ? 1 : Math.max(1, ...measuredRuns.flatMap((run) => viewOf(run)[measure.key].flat()));
  measuredRuns.forEach((run, index) => {
    const values = viewOf(run)[measure.key];
    const text = values.map((row) => row.map((value) => formatCell(measure, value)));
    Plotly.react(byId('head-charts').children[index], [{
      type: 'heatmap', z: values, zmin: 0, zmax: highest, text, xgap: 2, ygap: 2, showscale: false,
      texttemplate: values[0].length <= 8 ? '%{text}' : '', colorscale: [[0, '#f3f6fb'], [0.5, '#8fb3d9'], [1, '#163f73']],
      hovertemplate: 'layer %{y}, head %{x}: %{z:.4f}<extra></extra>',
    }], baseLayout({
      title: {text: escaped(run.name), font: {size: 15, color: run.colour}, x: 0.5, y: 0.97}, height: 300,
      margin: {l: 44, r: 8, t: 34, b: 40},
      xaxis: axis('head', {dtick: 1, showgrid: false}), yaxis: axis('layer', {dtick: 1, showgrid: false}),
    }), plotConfig);
  });
}

function prepareHeads() {
  byId('measure').append(...measures.map((measure) => element('option', {textContent: measure.label})));
  byId('head-charts').append(...measuredRuns.map(() => element('div')));
  byId('measure').addEventListener('change', drawHeads);
  drawHeads();
}

function drawLayers() {
  // Zeros stand in the squares above and, with a text, say the same as survivors; without one there is little else.
  const shown = onText ? measures.filter((one) => one.key !== 'sparsity') : measures;
  // All places first: Plotly takes the width that its place has when it draws.
  byId('layer-charts').append(...shown.map(() => element('div')));
  shown.forEach((measure, place) => {
    const traces = [];
    measuredRuns.forEach((run, index) => {
      const values = viewOf(run)[measure.key];
      // Runs stand side by side instead of on top of each other.
      const shift = measuredRuns.length > 1 ? 0.3 * (index / (measuredRuns.length - 1) - 0.5) : 0;
      traces.push({mode: 'markers', showlegend: false, marker: {color: run.colour, size: 6, opacity: 0.45},
                   x: values.flatMap((row, layer) => row.map(() => layer + shift)), y: values.flat(),
                   text: values.flatMap((row, layer) => row.map((_, head) => `layer ${layer}, head ${head}`)),
                   hovertemplate: '%{text}: %{y:.4f}<extra></extra>'});
      traces.push({mode: 'lines', name: escaped(run.name), line: {color: run.colour, width: 2},
                   x: values.map((_, layer) => layer + shift), y: values.map(mean),
                   hovertemplate: 'mean: %{y:.4f}'});
    });
    Plotly.newPlot(byId('layer-charts').children[place], traces, baseLayout({
      title: {text: measure.label, font: {size: 15}, x: 0.02, xanchor: 'left', y: 0.97}, height: 290,
      margin: {l: 52, r: 10, t: 62, b: 40}, showlegend: runs.length <= 4, xaxis: axis('layer', {dtick: 1}),
      yaxis: axis('', measure.share ? {range: [-0.03, 1.03], tickformat: '.0%'} : {rangemode: 'tozero'}),
    }), plotConfig);
  });
}

// --- one sentence ----------------------------------------------------------------------------------------------------

const chosen = {run: 0, view: 0, layer: 0, head: 0, relative: true, row: null};

const shownMap = () => runs[chosen.run].sentence.views[chosen.view].maps[chosen.layer][chosen.head];

// The head with the most of both signs, in the last run that has signs at all: what softmax cannot show.
function chooseStartingHead() {
  let best = -1;
  runs.forEach((run, runIndex) => run.sentence.views[0].maps.forEach((heads, layer) => heads.forEach((map, head) => {
    const weights = map.flat();
    const rating = Math.min(weights.filter((value) => value > 0).length, weights.filter((value) => value < 0).length);
    if (rating > best || rating === best && runIndex > chosen.run) {
      best = rating;
      Object.assign(chosen, {run: runIndex, view: 0, layer, head});
    }
  })));
}

function select(label, names, key) {
  const list = element('select', {}, ...names.map((name) => element('option', {textContent: name})));
  list.selectedIndex = chosen[key];
  list.addEventListener('change', () => {
    chosen[key] = list.selectedIndex;
    if (key === 'run') chosen.row = null;
    drawSentence();
  });
  return element('label', {}, `${label} `, list);
}

function drawControls() {
  const run = runs[chosen.run];
  const maps = run.sentence.views[0].maps;
  chosen.view = Math.min(chosen.view, run.sentence.views.length - 1);
  chosen.layer = Math.min(chosen.layer, maps.length - 1);
  chosen.head = Math.min(chosen.head, maps[0].length - 1);
  const relative = element('input', {type: 'checkbox', checked: chosen.relative});
  relative.addEventListener('change', () => {
    chosen.relative = relative.checked;
    drawSentence();
  });
  byId('map-controls').replaceChildren(
    select('model', runs.map((one) => one.name), 'run'),
    select('layer', maps.map((_, layer) => String(layer)), 'layer'),
    select('head', maps[0].map((_, head) => String(head)), 'head'),
    ...(run.sentence.views.length > 1 ? [select('map', run.sentence.views.map((view) => view.name), 'view')] : []),
    element('label', {}, relative, ' colour each row by its own strongest weight'));
}

// Shares of the strongest weight in [-1, 1]. A weight that is not zero keeps a visible tint, so that white means zero.
function tinted(map, relative) {
  const strongest = (weights) => weights.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const overall = strongest(map.flat());
  return map.map((row) => {
    const scale = (relative ? strongest(row) : overall) || 1;
    return row.map((value) => value === 0 ? 0 : Math.sign(value) * Math.max(Math.abs(value) / scale, 0.01));
  });
}

const tints = [[0, '#2166ac'], [0.4975, '#dfebf6'], [0.49751, '#ffffff'], [0.50249, '#ffffff'], [0.5025, '#fde6dd'],
  [1, '#b2182b']];

const visible = (token) => token === ' ' ? '␣' : token.replace(/\n/g, '⏎').replace(/ /g, '␣');

function drawMap() {
  const chart = byId('map-chart');
  const tokens = runs[chosen.run].sentence.tokens;
  const map = shownMap();
  const shares = tinted(map, chosen.relative);
  const size = Math.max(chart.clientWidth, 240);
  const labels = tokens.map((token) => escaped(visible(token)));
  const positions = tokens.map((_, index) => index);
  const square = (row, fill) => positions.map((column) => column < row.length ? fill(row[column], column) : null);
  const ticks = {tickmode: 'array', tickvals: positions, ticktext: labels, showgrid: false, zeroline: false,
                 ticklen: 0, fixedrange: true,
                 tickangle: Math.max(...labels.map((label) => label.length)) > 1 ? -90 : 0,
                 tickfont: {size: Math.min(13, Math.max(5, 0.85 * (size - 70) / tokens.length)),
                            family: 'ui-monospace, "DejaVu Sans Mono", monospace'}};
  const wide = size > 500;
  Plotly.react(chart, [{
    type: 'heatmap', z: shares.map((row) => square(row, (value) => value)), zmin: -1, zmax: 1, colorscale: tints,
    text: map.map((row, query) => square(row, (value, key) =>
      `“${labels[query]}” looks at “${labels[key]}”: ${value === 0 ? 'exactly 0' : value}`)),
    hovertemplate: '%{text}<extra></extra>', hoverongaps: false, showscale: wide,
    colorbar: {thickness: 12, len: 0.6, tickvals: [-1, 0, 1], ticktext: ['−', '0', '+'], outlinewidth: 0},
  }], baseLayout({
    height: size - (wide ? 60 : 0), plot_bgcolor: '#e9ecf1', margin: {l: 28, r: wide ? 60 : 6, t: 8, b: 28},
    xaxis: {...ticks, range: [-0.5, tokens.length - 0.5]},
    yaxis: {...ticks, tickangle: 0, range: [tokens.length - 0.5, -0.5]},
  }), plotConfig);
  chart.removeAllListeners('plotly_click');
  chart.on('plotly_click', (event) => {
    chosen.row = event.points[0].y;
    drawText();
  });
  const weights = map.flat();
  const zeros = weights.filter((value) => value === 0).length;
  const empty = map.filter((row) => row.every((value) => value === 0)).length;
  byId('map-note').textContent = `${zeros} of ${weights.length} pairs are exactly zero, ` +
    `${weights.filter((value) => value < 0).length} are negative, ${empty} of ${map.length} rows are empty.`;
}

function drawText() {
  const map = shownMap();
  const survivors = map.map((row) => row.filter((value) => value !== 0).length);
  chosen.row ??= survivors.lastIndexOf(Math.max(...survivors));
  const shares = tinted(map, true)[chosen.row];
  byId('map-text').replaceChildren(...runs[chosen.run].sentence.tokens.map((token, index) => {
    const span = element('span', {textContent: token === '\n' ? '⏎' : token, tabIndex: 0, role: 'option'});
    span.style.whiteSpace = 'pre-wrap';
    if (index > chosen.row) {
      span.className = 'future';
    } else if (shares[index]) {
      const strength = Math.round(100 * (0.12 + 0.68 * Math.abs(shares[index])));
      span.style.background = `rgb(${shares[index] > 0 ? '178 24 43' : '33 102 172'} / ${strength}%)`;
      if (strength > 55) span.style.color = '#ffffff';
    }
    span.ariaSelected = String(index === chosen.row);
    const pick = () => {
      chosen.row = index;
      drawText();
    };
    span.addEventListener('click', pick);
    span.addEventListener('keydown', (event) => {
      if (event.key === 'Enter') pick();
    });
    return span;
  }));
}

function drawSentence() {
  drawControls();
  drawMap();
  drawText();
}

function prepareSentence() {
  chooseStartingHead();
  drawSentence();
  let width = byId('map-chart').clientWidth;
  new ResizeObserver(() => {
    if (byId('map-chart').clientWidth === width) return;
    width = byId('map-chart').clientWidth;
    drawMap();
  }).observe(byId('map-chart'));
}

// --- samples and the rest --------------------------------------------------------------------------------------------

function drawSamples() {
  byId('samples').append(...runs.map((run) => {
    const title = element('b', {textContent: run.name});
    title.style.color = run.colour;
    return element('div', {}, title, element('pre', {className: 'sample'},
      element('b', {textContent: run.sample.prompt}), run.sample.text));
  }));
}

function drawFrame() {
  const names = runs.map((run) => run.name);
  byId('lead').textContent = runs.length === 1 ? `A look inside the language model ${names[0]}.` :
    `${runs.length} language models side by side: ${names.join(', ')}.`;
  const steps = runs.map((run) => `${run.name} at step ${run.step ?? '?'}`).join(', ');
  if (onText) {
    const measured = runs[0].statistics;
    byId('provenance').textContent = `Bits per byte over ${report.text.bytes.toLocaleString('en')} bytes of ` +
      `${report.text.name}; attention over ${measured.windows} windows of ${measured.context} tokens of it. ` +
      `Checkpoints: ${steps}. Made by tda ${report.version}.`;
  } else {
    byId('provenance').textContent = `From metrics.jsonl of ${steps}; attention as of each run's last validation. ` +
      `Made by tda ${report.version}.`;
  }
  // The page holds all sections; those without data go.
  for (const node of document.querySelectorAll(onText ? '.of-training' : '.on-text')) node.remove();
  if (!measuredRuns.length) byId('heads').remove();
}

drawFrame();
drawResults();
drawGrid();
drawLoss();
if (byId('learning')) drawSparsityHistory();
if (byId('heads')) {
  prepareHeads();
  drawLayers();
}
if (onText) {
  prepareSentence();
  drawSamples();
}
document.body.dataset.ready = 'true';
