// Draws the page of `inspect --html` from the JSON document in the element "data". All texts from the run are inserted
// with `textContent`, never as HTML. The formulas and sentences were written by Python; nothing is computed here except
// colors and positions.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = { sample: 0, step: 0, heat: 0, sort: data.sort, descending: true };
const LEVELS = 4;  // on each side of the middle
const MAX_ROWS = 200;  // of the table of steps
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") found.addEventListener("click", value);
    else if (value !== null) found.setAttribute(name, value);
  }
  found.append(...children);
  return found;
}

function show(id, ...children) {
  document.getElementById(id).replaceChildren(...children);
}

function number(x) {
  if (x === null || x === undefined) return "–";
  if (typeof x !== "number") return String(x);
  const size = Math.abs(x);
  if (Number.isInteger(x)) return String(x);
  if (size >= 1e5 || size < 0.0005) return x.toExponential(0);
  const digits = size < 0.01 ? 4 : size < 100 ? 3 : size < 1000 ? 2 : 0;
  return x.toFixed(digits);
}

function heatLevel(x) {
  const scale = data.heats[at.heat];
  if (typeof x !== "number") return 0;
  const place = (value) => scale.log ? Math.log(value) : value;
  const above = x >= scale.middle;
  const span = Math.max(Math.abs(place(above ? scale.high : scale.low) - place(scale.middle)), 1e-12);
  const share = (place(x) - place(scale.middle)) / span;
  return Number.isFinite(share) ? Math.round(Math.max(-1, Math.min(1, share)) * LEVELS) : x < scale.middle ? -LEVELS : 0;
}

const levelClass = (level) => level > 0 ? `u${level}` : level < 0 ? `d${-level}` : "n0";

function clipClass(sample, step) {
  return sample.columns.cut[step] ? "cut" : sample.columns.outside[step] ? "outside" : "";
}

function clipMark(sample, step) {
  const side = sample.columns.outside[step];
  return (side > 0 ? "▲" : side < 0 ? "▼" : "") + (sample.columns.cut[step] ? "×" : "");
}

// the list of samples

function sortedSamples() {
  const order = data.samples.map((_, i) => i);
  const key = (i) => data.samples[i].row[at.sort] ?? -Infinity;
  const sign = at.descending ? -1 : 1;
  return order.sort((a, b) => sign * (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) || a - b);
}

function drawList() {
  const heading = ([key, label, meaning]) => {
    const button = make("button", { title: meaning, onclick: () => sortBy(key) },
      label + (key === at.sort ? (at.descending ? " ▼" : " ▲") : ""));
    const order = key !== at.sort ? null : at.descending ? "descending" : "ascending";
    return make("th", { scope: "col", "aria-sort": order }, button);
  };
  const word = (tag, attributes, ...children) => data.tokens ? [make(tag, { class: "word", ...attributes }, ...children)] : [];
  const [first, ...others] = data.list;
  const head = make("tr", {}, heading(first), ...word("th", { scope: "col" }, "prompt → response"), ...others.map(heading));
  const rows = sortedSamples().map((i) => {
    const sample = data.samples[i];
    const cell = ([key]) => make("td", {}, number(sample.row[key]));
    const [before, label] = [[...sample.before.trim()], [...sample.label]];
    const texts = [make("bdi", {}, (before.length > 12 ? "…" : "") + before.slice(-12).join("")), " → ",
      make("bdi", {}, label.slice(0, 14).join("") + (label.length > 14 ? "…" : ""))];
    return make("tr", { "data-i": i, onclick: () => select(i, firstStep(i)) },
      cell(first), ...word("td", {}, ...texts), ...others.map(cell));
  });
  show("list", make("table", { class: "numbers" }, make("thead", {}, head), make("tbody", {}, ...rows)));
  markRow("list", at.sample);
}

function sortBy(key) {
  at.descending = key === at.sort ? !at.descending : key !== "number";
  at.sort = key;
  drawList();
}

function markRow(id, i) {
  const box = document.getElementById(id);
  for (const row of box.querySelectorAll('tr[aria-selected="true"]')) row.removeAttribute("aria-selected");
  const row = box.querySelector(`tr[data-i="${i}"]`);
  if (!row) return;
  row.setAttribute("aria-selected", "true");
  const head = box.querySelector("thead").offsetHeight;
  if (row.offsetTop - head < box.scrollTop) box.scrollTop = row.offsetTop - head;
  else if (row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight)
    box.scrollTop = row.offsetTop + row.offsetHeight - box.clientHeight;
}

function firstStep(i) {  // the first cut step, or the last step
  const { cut } = data.samples[i].columns;
  const found = cut.findIndex(Boolean);
  return found < 0 ? cut.length - 1 : found;
}

// the selected sample

function drawSample() {
  const sample = data.samples[at.sample];
  show("title", make("bdi", {}, sample.title));
  show("facts", sample.facts);
  drawHeatBar();
  document.getElementById("prompt").hidden = document.getElementById("text").hidden = !data.tokens;
  document.getElementById("strips").hidden = data.tokens;
  if (data.tokens) drawText(sample);
  else drawStrips(sample);
}

function drawSteps() {  // only the rows around the selected step, because a table of 4,000 rows would be slow
  const sample = data.samples[at.sample], count = sample.steps.length;
  const from = Math.max(0, Math.min(at.step - MAX_ROWS / 2, count - MAX_ROWS)), to = Math.min(count, from + MAX_ROWS);
  show("steps-title", count > MAX_ROWS ? `Steps ${from + 1} to ${to} of ${count}` : "All steps");
  const head = make("tr", {}, make("th", { title: "column in the rollout" }, "#"),
    make("th", { class: "word" }, data.tokens ? "token" : "action"),
    ...data.columns.map(([, header, meaning]) => make("th", { title: meaning }, header)));
  const rows = sample.steps.slice(from, to).map((column, i) => [column, from + i]).map(([column, step]) => make("tr",
    { "data-i": step, onclick: () => select(at.sample, step) },
    make("td", {}, column),
    make("td", { class: "word" }, make("bdi", {}, sample.text[step])),
    ...data.columns.map(([key]) => make("td", {},
      number(sample.columns[key][step]) + (key === "ratio" ? ` ${clipMark(sample, step)}` : "")))));
  show("steps", make("table", { class: "numbers" }, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function drawHeatBar() {
  const scale = data.heats[at.heat];
  const buttons = data.heats.map((heat, i) => make("button",
    { "aria-pressed": String(i === at.heat), title: heat.meaning, onclick: () => { at.heat = i; drawColors(); } },
    heat.label));
  const swatches = [];
  for (let level = -LEVELS; level <= LEVELS; level++) swatches.push(make("i", { class: levelClass(level) }));
  show("heat", "color:", ...buttons, make("span", { class: "legend" },
    number(scale.low), make("span", {}, ...swatches), number(scale.high)));
  show("meaning", `Blue: ${scale.meaning}. The middle is ${number(scale.middle)}; the ends ignore the most extreme 2 %. `,
    data.tokens ? "Line under a token: " : "Line in the strip of the ratio: ", make("span", { class: "outside" }, "ratio outside the clip range"), ", ",
    make("span", { class: "cut" }, "cut: outside, and the clip removed the gradient"), ".");
}

function drawText(sample) {
  const tokens = sample.text.map((text, step) => make("span",
    { "data-i": step, onclick: () => select(at.sample, step) }, text));
  show("prompt", sample.before);
  show("text", ...tokens);
  colorTokens();
}

function colorTokens() {
  const sample = data.samples[at.sample], scale = data.heats[at.heat];
  const values = sample.columns[scale.name];
  document.querySelectorAll("#text [data-i]").forEach((token, step) => {
    token.className = `token ${levelClass(heatLevel(values[step]))} ${clipClass(sample, step)}`;
    token.title = `${scale.label} ${number(values[step])}, ratio ${number(sample.columns.ratio[step])}`;
  });
}

function drawColors() {
  drawHeatBar();
  if (data.tokens) colorTokens();
  else drawStrips(data.samples[at.sample]);
  markStep();
}

// strips over time

function draw(tag, attributes) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
}

function strip(sample, { key, kind }) {
  const values = sample.columns[key], steps = values.length, height = 100;
  const known = values.filter((x) => typeof x === "number");
  let low = Math.min(...known), high = Math.max(...known);
  if (kind === "bars" || kind === "heat") [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (kind === "ratio") [low, high] = [Math.min(low, data.limits[0]), Math.max(high, data.limits[1])];
  const ends = [low, high];
  if (low === high) [low, high] = [low - 1, high + 1];
  const y = (x) => (4 + 92 * (high - x) / (high - low)).toFixed(2);
  const across = (x, name) => draw("path", { d: `M0 ${y(x)}H${steps}`, class: name });
  const svg = draw("svg", { viewBox: `0 0 ${steps} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${key} at each step` });
  if (kind === "heat") svg.append(...values.map((x, i) =>
    draw("rect", { x: i, y: 0, width: 1, height, class: levelClass(heatLevel(x)) })));
  if (kind === "bars") svg.append(across(0, "zero"));
  if (kind === "bars") svg.append(...values.map((x, i) => draw("rect", { x: i + 0.1, width: 0.8, class: "bar",
    y: y(Math.max(x, 0)), height: Math.max(0.5, Math.abs(y(x) - y(0))) })));
  if (kind === "ratio") svg.append(...data.limits.map((x) => across(x, "limit")), across(1, "zero"));
  if (kind === "ratio") svg.append(...values.map((_, i) => clipClass(sample, i)).map((name, i) =>
    draw("rect", { x: i, y: 92, width: 1, height: name ? 8 : 0, class: `mark ${name}` })));
  if (kind !== "bars" && kind !== "heat") {
    const path = values.map((x, i) => typeof x !== "number" ? ""
      : kind === "steps" ? `${i ? "L" : "M"}${i} ${y(x)}H${i + 1}` : `${i ? "L" : "M"}${i + 0.5} ${y(x)}`);
    if (steps === 1 && kind !== "steps") path.push("h0.01");
    svg.append(draw("path", { d: path.join(""), class: "line" }));
  }
  svg.append(draw("path", { class: "cursor", d: "" }));
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    select(at.sample, Math.min(steps - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * steps))));
  });
  const texts = kind === "heat" ? [] : [make("span", {}, number(ends[1])), make("span", {}, number(ends[0]))];
  return [svg, make("span", { class: "ends" }, ...texts)];
}

function drawStrips(sample) {
  const heat = data.heats[at.heat];
  const rows = [{ key: heat.name, label: `color: ${heat.label}`, kind: "heat" }, ...data.strips];
  show("strips", ...rows.flatMap((row) => {
    const label = make("span", { "data-key": row.key, "data-label": row.label }, row.label);
    return [label, ...strip(sample, row)];
  }));
}

function markStrips() {
  const { columns } = data.samples[at.sample];
  const x = at.step + 0.5;
  for (const cursor of document.querySelectorAll("#strips .cursor")) cursor.setAttribute("d", `M${x} 0V100`);
  for (const label of document.querySelectorAll("#strips [data-key]"))
    label.textContent = `${label.dataset.label} = ${number(columns[label.dataset.key][at.step])}`;
}

// the selected step

function drawStep() {
  const sample = data.samples[at.sample], step = at.step;
  const label = data.tokens ? [" “", make("bdi", {}, sample.text[step]), "”"] : [`, action ${sample.text[step]},`];
  show("step-title", `${data.tokens ? "Token" : "Step"} ${sample.steps[step]}`, ...label, " after the update");
  show("formulas", make("tbody", {}, ...sample.formulas[step].map(([kind, filled, result]) => make("tr", {},
    make("td", {}, data.formulas[kind][0]),
    make("td", {}, make("div", {}, `= ${data.formulas[kind][1]}`), make("div", { class: "filled" }, filled && filled !== result ? `= ${filled}` : "")),
    make("td", {}, result)))));
  show("sentence", data.sentences[sample.sentences[step]]);
  drawChances(sample, step);
  const ratios = sample.epochs.map((epoch) => number(epoch[step]));
  show("epochs", ratios.length ? `Ratio in each epoch, just before the step's minibatch: ${ratios.join(" → ")}; ` +
    `after the update: ${number(sample.columns.ratio[step])}.` : "");
  show("observation", ...sample.observations.map(([name, values]) =>
    make("div", {}, `${name}: ${values[step].map(number).join(", ")}`)));
}

function drawChances(sample, step) {
  const body = sample.chances.map(([policy, texts, shares]) => {
    const own = sample.own[policy][step];
    const name = { ref: "reference", old: "old policy", new: "new policy" }[policy];
    const rows = [make("tr", {}, make("th", { class: "word", colspan: 2 }, name), make("th"))];
    const line = (kind, text, share) => rows.push(make("tr", { class: kind }, make("td", { class: "word" }, text),
      make("td", { class: "word" }, bar(share)), make("td", {}, percent(share))));
    const found = texts[step] || [];
    if (!found.includes(sample.text[step])) line("own", `this ${data.tokens ? "token" : "action"}`, own);
    found.forEach((text, i) => line(text === sample.text[step] ? "own" : "", make("bdi", {}, text), shares[step][i]));
    return make("tbody", {}, ...rows);
  });
  show("chances", ...body);
}

function bar(share) {
  const found = make("span", { class: "share" });
  found.style.width = `${(6 * Math.min(1, share)).toFixed(2)}rem`;
  return found;
}

function percent(share) {
  if (share === null) return "–";
  if (share < 0.0001) return "<0.01 %";
  return `${(100 * share).toFixed(share < 0.01 ? 2 : 1)} %`;
}

function markStep(isNew = false) {
  const old = document.querySelector('#text [aria-selected="true"]');
  if (old) old.removeAttribute("aria-selected");
  const token = document.querySelector(`#text [data-i="${at.step}"]`);
  if (token) {
    token.setAttribute("aria-selected", "true");
    const box = document.getElementById("text");
    if (token.offsetTop < box.scrollTop || token.offsetTop > box.scrollTop + box.clientHeight - 30)
      box.scrollTop = token.offsetTop - box.clientHeight / 2;
  }
  markStrips();
  if (isNew || !document.querySelector(`#steps tr[data-i="${at.step}"]`)) drawSteps();
  markRow("steps", at.step);
}

function select(i, step) {
  const changed = i !== at.sample || !document.querySelector("#steps table");
  at.sample = i;
  at.step = Math.max(0, Math.min(step, data.samples[i].steps.length - 1));
  if (changed) { drawSample(); markRow("list", i); }
  markStep(changed);
  drawStep();
}

function moveSample(by) {
  const order = sortedSamples();
  const i = order[Math.max(0, Math.min(order.length - 1, order.indexOf(at.sample) + by))];
  if (i !== at.sample) select(i, firstStep(i));
}

function nextCut() {
  const { cut } = data.samples[at.sample].columns;
  const found = cut.findIndex((x, step) => x && step > at.step);
  select(at.sample, found < 0 ? firstStep(at.sample) : found);
}

const KEYS = {
  ArrowLeft: () => select(at.sample, at.step - 1), ArrowRight: () => select(at.sample, at.step + 1),
  ArrowUp: () => moveSample(-1), ArrowDown: () => moveSample(1), n: nextCut,
  h: () => { at.heat = (at.heat + 1) % data.heats.length; drawColors(); },
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// the texts above the samples

function drawHead() {
  show("run", make("bdi", {}, data.title));
  show("about", data.about + ".");
  const command = make("code", {}, data.command);
  if (data.included) show("included", data.included + ". To show another one: ", command);
  const pair = ([name, value, meaning]) => make("div", { title: meaning || null }, make("span", {}, name),
    make("span", {}, value));
  show("metrics", ...data.metrics.map(([tag, meaning, value]) => pair([tag, number(value), meaning])));
  show("options", ...data.options.map(pair));
  show("quantities", ...data.columns.flatMap(([, header, meaning]) => [make("dt", {}, header), make("dd", {}, meaning)]));
}

drawHead();
drawList();
const first = sortedSamples()[0];
select(first, firstStep(first));
