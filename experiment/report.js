"use strict";
// Everything shown is made by createElement and text nodes, so no prompt can become markup.

const INDEX = JSON.parse(document.getElementById("index").textContent);
const FIELDS = ["id", "round", "step", "steps", "seed", "status", "values", "guidance", "draft",
  "nfe", "seconds", "parents", "picture", "explanation", "recipe"];
const ROWS_AT_ONCE = 150;
const SVG = "http://www.w3.org/2000/svg";
const COLORS = 8;

// Elements.

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "color") element.style.setProperty("--color", value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function s(tag, properties = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "color") element.style.setProperty("--color", value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A name that may be broken behind its underscores.
const breakable = (name) => name.split(/(?<=_)/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
const color = (run) => `var(--run${run % COLORS})`;
const swatch = (run) => h("span", { class: "swatch", color: color(run), "aria-hidden": "true" });
const several = INDEX.runs.length > 1;
const MOST_CATEGORIES = 40;  // more are as good as none
const CATEGORIES = [...new Set(INDEX.prompts.map(({ category }) => category).filter(Boolean))];
if (CATEGORIES.length > MOST_CATEGORIES) CATEGORIES.length = 0;
// Those by which prompts can be ordered: of many runs only the pairs with the first.
const PAIRS = INDEX.pairs.filter(([, , theirs]) => INDEX.runs.length < 4 || theirs === 0);

// Numbers.

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e7 || Math.abs(value) < 1e-4)) return value.toExponential(2);
  if (value === 0) return "0";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 3;
  return value.toFixed(digits).replace("-", "−");
}
const whole = (value) => (value === null ? "–" : Math.round(value).toLocaleString("en-US"));
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const seconds = (value) => (value === null ? "–" : value >= 5400 ? `${number(value / 3600)} h` : `${number(value)} s`);

function estimate([mean, low, high], show = number) {
  const text = [show(mean)];
  if (low !== null) text.push(h("span", { class: "faint" }, ` [${show(low)}, ${show(high)}]`));
  return text;
}

// Orders by a value; what has none comes last either way.
function ordered(items, value, descending) {
  const of = new Map(items.map((item) => [item, value(item)]));
  const none = (v) => v === null || v === undefined || Number.isNaN(v);
  return [...items].sort((a, b) => {
    const x = of.get(a), y = of.get(b);
    if (none(x) || none(y)) return none(x) - none(y);
    const by = typeof x === "string" ? x.localeCompare(y) : x - y;
    return descending ? -by : by;
  });
}

// The records of one prompt, parsed when they are first needed.

const parsed = new Map();
function prompt(at) {
  if (!parsed.has(at)) {
    const source = document.getElementById(`p${at}`);
    if (source === null) return null;  // not all of the file has arrived yet
    const runs = JSON.parse(source.textContent).map((run) => run && {
      ...run,
      rows: run.rows.map((row) => Object.fromEntries(FIELDS.map((name, i) => [name, row[i]]))),
    });
    parsed.set(at, runs);
  }
  return parsed.get(at);
}
const loaded = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
  else done();
});

const finished = (row) => row.step === row.steps && !row.draft;
const scored = (row) => row.values[0] !== null;
const KINDS = {
  all: () => true,
  finished,
  previews: (row) => row.step < row.steps,
  drafts: (row) => row.draft,
  "without a score": (row) => !scored(row),
};

// Pictures.

function address(run, name) {
  return INDEX.runs[run].folder + encodeURIComponent(name);
}
function pictureName(shown, row) {
  if (row.picture === 1) return `${shown.stem}_i@${row.round}_s@${row.seed}.png`;
  return typeof row.picture === "string" ? row.picture : null;
}
function nothing(why) {
  return h("span", { class: "picture none" }, why);
}
// A link to the picture or the video itself, in a tab of its own.
function linked(run, name, ...shown) {
  return h("a", { class: "picture", href: address(run, name), target: "_blank", rel: "noopener" }, shown);
}
// What of a video is in view is loaded as far as its first frame.
const watchVideos = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    watchVideos.unobserve(target);
    target.preload = "metadata";
  }
}, { rootMargin: "200px" });
const PLAYS = document.createElement("video").canPlayType('video/mp4; codecs="avc1.64001f"') !== "";
// A small one plays while it is pointed at. A browser without H.264, or a damaged file: a link to it.
function video(run, name, alt, poster, small) {
  const link = () => linked(run, name, poster ? h("img", { src: poster, alt })
    : h("span", { class: "picture none" }, small ? "video" : "open the video"));
  if (!PLAYS) return link();
  const player = h("video", { preload: "none", controls: !small, loop: true, playsinline: true, poster, "aria-label": alt });
  player.muted = true;
  const box = small ? linked(run, name, player) : h("span", { class: "picture" }, player);
  if (small) {
    box.addEventListener("pointerenter", () => player.play().catch(() => {}));  // it was left before it played
    box.addEventListener("pointerleave", () => player.pause());
  }
  player.addEventListener("error", () => box.replaceWith(link()));
  player.src = address(run, name);
  watchVideos.observe(player);
  return box;
}
function picture(run, name, alt, poster = null, small = false) {
  if (name.endsWith(".mp4")) return video(run, name, alt, poster, small);
  const link = linked(run, name);
  const image = h("img", { loading: "lazy", decoding: "async", alt });
  image.addEventListener("error", () => link.replaceWith(nothing("image missing or damaged")));
  image.src = address(run, name);
  link.append(image);
  return link;
}
function rowPicture(run, shown, row, small = false) {
  const name = pictureName(shown, row);
  const poster = row.id === shown.best ? shown.thumb : null;
  if (name !== null) return picture(run, name, `candidate ${row.id}, seed ${row.seed}`, poster, small);
  if (row.picture === 2) return nothing("image missing");
  return nothing(row.step < row.steps ? `step ${row.step}/${row.steps}` : "not kept");
}

// The tooltip: by mouse and by keyboard.

const tip = document.getElementById("tip");
let explained = null;  // what the tooltip is shown for
function placeTip() {
  const box = explained.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(box.left, innerWidth - own.width - 12);
  const below = box.bottom + 8 + own.height < innerHeight;
  tip.style.left = `${Math.max(12, left)}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - own.height - 8)}px`;
}
function hideTip() {
  if (explained) explained.removeAttribute("aria-describedby");
  explained = null;
  tip.hidden = true;
}
function explain(element, text) {
  if (!text) return element;
  const show = () => {
    hideTip();
    explained = element;
    // In a dialog the tooltip has to be, too: a dialog lies over all else.
    (element.closest("dialog") ?? document.body).append(tip);
    tip.textContent = text;
    tip.hidden = false;
    element.setAttribute("aria-describedby", "tip");
    placeTip();
  };
  for (const event of ["mouseenter", "focusin"]) element.addEventListener(event, show);
  for (const event of ["mouseleave", "focusout"]) element.addEventListener(event, hideTip);
  return element;
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("scroll", () => { if (explained) placeTip(); }, { passive: true, capture: true });

// Small controls.

function choice(names, chosen, pick, label) {
  const group = h("span", { class: "choice", role: "group", "aria-label": label });
  for (const [key, shown] of names) {
    group.append(h("button", {
      type: "button",
      "aria-pressed": String(key === chosen),
      onclick: (event) => {
        for (const other of group.children) other.setAttribute("aria-pressed", String(other === event.currentTarget));
        pick(key);
      },
    }, shown));
  }
  return group;
}
function options(names, pick, label) {
  const list = h("select", { "aria-label": label, onchange: (event) => pick(event.target.value) });
  for (const [key, shown] of names) list.append(h("option", { value: key }, shown));
  return list;
}

// Charts.

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-6; at += 1) found.push(at * step);
  return found;
}
function short(value) {
  if (Math.abs(value) >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  return Math.abs(value) >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : String(+value.toPrecision(4));
}

// lines: [{run, points: [[x, y, low, high]]}]. Steps hold a value until the next point.
function draw(width, lines, { xLabel, yLabel, steps }) {
  const height = Math.round(Math.min(260, Math.max(190, width * 0.5)));
  const points = lines.flatMap((line) => line.points);
  const ys = points.flatMap((p) => [p[1], p[2] ?? p[1], p[3] ?? p[1]]);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const room = (high - low) * 0.07 || Math.abs(high) * 0.05 || 0.5;
  [low, high] = [low - room, high + room];
  const right = Math.max(...points.map((p) => p[0])) || 1;
  const [l, r, t, b] = [50, width - 14, 10, height - 38];
  const x = (value) => l + (value / right) * (r - l);
  const y = (value) => b - ((value - low) / (high - low)) * (b - t);
  const f = (value) => value.toFixed(1);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${yLabel} against ${xLabel}: ` + lines.map((line) => {
      const end = line.points[line.points.length - 1];
      return `${INDEX.runs[line.run].name} ${number(end[1])} at ${short(end[0])}`;
    }).join("; ") });
  for (const tick of ticks(low, high, 4)) {
    svg.append(s("line", { class: "grid", x1: l, x2: r, y1: y(tick), y2: y(tick) }),
      s("text", { x: l - 8, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(0, right, Math.max(3, Math.floor(width / 90)))) {
    svg.append(s("text", { x: x(tick), y: b + 17, "text-anchor": "middle" }, short(tick)));
  }
  svg.append(s("line", { class: "grid", x1: l, x2: r, y1: b, y2: b }),
    s("text", { x: r, y: b + 33, "text-anchor": "end" }, xLabel));
  const path = (values, at) => values.map((p, i) =>
    i === 0 ? `M${f(x(p[0]))},${f(y(at(p)))}` :
    steps ? `H${f(x(p[0]))}V${f(y(at(p)))}` : `L${f(x(p[0]))},${f(y(at(p)))}`).join("");
  for (const { run, points: own } of lines) {
    const banded = own.filter((p) => p[2] !== null && p[2] !== undefined);
    if (banded.length > 1) {
      const back = [...banded].reverse().map((p, i) => steps && i > 0
        ? `V${f(y(p[2]))}H${f(x(p[0]))}` : `L${f(x(p[0]))},${f(y(p[2]))}`).join("");
      svg.append(s("path", { class: "band", color: color(run), d: `${path(banded, (p) => p[3])}${back}Z` }));
    }
    svg.append(s("path", { class: "curve", color: color(run), d: path(own, (p) => p[1]) }));
    for (const p of own.length > 16 ? [own[0], own[own.length - 1]] : own) {
      svg.append(s("circle", { class: "dot", color: color(run), cx: f(x(p[0])), cy: f(y(p[1])), r: 4 },
        s("title", {}, `${INDEX.runs[run].name}: ${number(p[1])} at ${short(p[0])} ${xLabel}`)));
    }
  }
  return svg;
}

// views: {name: {lines, xLabel, yLabel, steps}}; the first is shown.
function chart(title, views) {
  const names = Object.keys(views);
  const place = h("div");
  const runs = [...new Set(Object.values(views).flatMap((view) => view.lines.map((line) => line.run)))];
  let chosen = names[0], width = 0;
  const show = () => { if (width) place.replaceChildren(draw(width, views[chosen].lines, views[chosen])); };
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now && Math.abs(now - width) > 8) { width = now; show(); }
  }).observe(place);
  return h("figure", { class: "chart card" },
    h("figcaption", {}, h("b", {}, title),
      names.length > 1 ? choice(names.map((name) => [name, name]), chosen, (name) => { chosen = name; show(); }, "cost") : null,
      several ? h("span", { class: "legend" }, runs.map((run) => h("span", {}, swatch(run), INDEX.runs[run].name))) : null),
    place);
}

// The overview.

function overview() {
  const labels = [...new Set(INDEX.runs.flatMap((run) => run.metrics.map(([label]) => label)))];
  const role = (label) => INDEX.runs.some((run) => run.metrics.some(([own, judge]) => own === label && !judge)) ? "verifier" : "judge";
  const head = h("tr", {}, h("th", { class: "text" }, "run"),
    labels.map((label) => h("th", {}, ...breakable(label), h("span", { class: "role" }, role(label)))),
    ["prompts", "images", "NFE", "time"].map((name) => h("th", {}, name)),
    ["search", "model", "verifier"].map((name) => h("th", { class: "text" }, name)));
  const rows = INDEX.runs.map((run, at) => h("tr", {},
    h("th", { class: "text" }, swatch(at), run.name),
    labels.map((label) => h("td", {}, run.means[label] ? estimate(run.means[label]) : "–")),
    h("td", {}, run.winners === run.prompts ? whole(run.prompts) : `${whole(run.winners)} of ${whole(run.prompts)}`),
    h("td", {}, whole(run.totals.images)), h("td", {}, whole(run.totals.NFE)), h("td", {}, seconds(run.totals.seconds)),
    ["method", "model", "verifier"].map((name) => h("td", { class: "text" }, run[name] || "–"))));
  const notes = [];
  INDEX.runs.forEach((run, at) => {
    const note = (text) => notes.push(several ? [swatch(at), `${run.name}: ${text}`] : text);
    for (const [label, rho] of Object.entries(run.correlations)) {
      if (rho !== null) note(`Rank correlation of the verifier and ${label} over winners: ${number(rho)}.`);
    }
    const failed = Object.entries(run.failures);
    if (failed.length) note(`Without a score: ${failed.map(([status, n]) => `${whole(n)} ${status}`).join(", ")}.`);
    if (run.fooled) note(`Winners that the verifier ranks far above any judge, so that it may have been fooled: ${whole(run.fooled)}.`);
  });
  document.getElementById("overview").append(
    h("h2", {}, several ? "Runs" : "The run"),
    h("div", { class: "card scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows))),
    h("p", { class: "faint" }, "Means of the winners over prompts, with 95 % bootstrap intervals."),
    ...notes.map((note) => h("p", {}, ...[note].flat())));
}

function pairs() {
  if (!INDEX.pairs.length) return;
  const rows = INDEX.pairs.map(([metric, ours, theirs, n, difference, wins]) => {
    const sure = difference[1] !== null && (difference[1] > 0 || difference[2] < 0);
    return h("tr", {},
      h("td", { class: "text" }, swatch(ours), INDEX.runs[ours].name, h("span", { class: "faint" }, " − "),
        swatch(theirs), INDEX.runs[theirs].name),
      h("td", { class: "text" }, metric),
      h("td", { class: sure ? "sure" : null }, estimate(difference, signed)),
      h("td", {}, estimate(wins, (value) => `${Math.round(value * 100)} %`)),
      h("td", {}, whole(n)));
  });
  document.getElementById("pairs").append(
    h("h2", {}, "Runs against each other"),
    h("div", { class: "card scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { class: "text" }, "runs"), h("th", { class: "text" }, "metric"),
        h("th", {}, "difference"), h("th", {}, "prompts won"), h("th", {}, "prompts"))),
      h("tbody", {}, rows))),
    h("p", { class: "faint" }, "Paired by prompt; a tie is half a win. Bold: the interval leaves zero out."));
}

function categories() {
  if (CATEGORIES.length < 2) return;
  const labels = [...new Set(INDEX.runs.flatMap((run) => run.metrics.map(([label]) => label)))];
  const having = (label) => INDEX.runs.flatMap((run, i) => run.metrics.some(([own]) => own === label) ? [i] : []);
  const columns = labels.flatMap((label) => having(label).map((i) => [i, label]));
  const rows = CATEGORIES.map((category) => {
    const own = INDEX.prompts.map((_, at) => at).filter((at) => INDEX.prompts[at].category === category);
    const means = columns.map(([i, label]) => {
      const known = own.map((at) => winnerScore(at, i, label)).filter((score) => score !== null);
      return h("td", {}, known.length ? number(known.reduce((sum, score) => sum + score, 0) / known.length) : "–");
    });
    return h("tr", {}, h("td", { class: "text" }, category), h("td", {}, whole(own.length)), means);
  });
  document.getElementById("categories").append(
    h("h2", {}, "Categories"),
    h("div", { class: "card scroll" }, h("table", {},
      h("thead", {},
        h("tr", {}, h("th", { class: "text" }, "category"), h("th", {}, "prompts"),
          labels.map((label) => h("th", { colspan: having(label).length }, breakable(label)))),
        several ? h("tr", {}, h("th", { colspan: 2 }), columns.map(([i]) => h("th", {}, swatch(i), INDEX.runs[i].name))) : null),
      h("tbody", {}, rows))),
    h("p", { class: "faint" }, "Means over winners."));
}

function curves() {
  const metrics = [...new Set(INDEX.runs.map((run) => run.metrics[0][0]))];
  const figures = [];
  for (const metric of metrics) {
    const own = INDEX.runs.flatMap((run, at) => run.metrics[0][0] === metric ? [at] : []);
    const views = {};
    for (const cost of INDEX.costs) {
      const lines = own.map((run) => ({ run, points: INDEX.runs[run].curves[cost] || [] })).filter((line) => line.points.length);
      if (lines.length) views[cost] = { lines, xLabel: `${cost} a prompt`, yLabel: metric, steps: true };
    }
    if (Object.keys(views).length) figures.push(chart(`Best ${metric} so far, mean`, views));
    const lines = own.map((run) => ({ run, points: INDEX.runs[run].bestOfN })).filter((line) => line.points.length > 1);
    if (lines.length) figures.push(chart(`Expected best of n draws`, { n: { lines, xLabel: "n", yLabel: metric, steps: false } }));
  }
  if (figures.length) document.getElementById("curves").append(h("h2", {}, "Curves"), h("div", { class: "charts" }, figures));
}

// The list of prompts.

const winnerScore = (at, run, label) => {
  const place = INDEX.runs[run].metrics.findIndex(([own]) => own === label);
  const shown = INDEX.prompts[at].runs[run];
  return place < 0 || !shown || !shown.values ? null : shown.values[place];
};
const firstScore = (at, label) => {
  for (let run = 0; run < INDEX.runs.length; run += 1) {
    const value = winnerScore(at, run, label);
    if (value !== null) return value;
  }
  return null;
};
const difference = (at, label, ours, theirs) => {
  const x = winnerScore(at, ours, label), y = winnerScore(at, theirs, label);
  return x === null || y === null ? null : x - y;
};

function sortings() {
  const found = new Map([["order", { name: "in order", value: (at) => at, descending: false }]]);
  const add = (name, value) => {
    found.set(`${name} down`, { name: `${name}, highest first`, value, descending: true });
    found.set(`${name} up`, { name: `${name}, lowest first`, value, descending: false });
  };
  for (const label of new Set(INDEX.runs.flatMap((run) => run.metrics.map(([own]) => own)))) {
    if (!several) add(label, (at) => firstScore(at, label));
    else INDEX.runs.forEach((run, i) => {
      if (run.metrics.some(([own]) => own === label)) add(`${label} of ${run.name}`, (at) => winnerScore(at, i, label));
    });
  }
  for (const [label, ours, theirs] of PAIRS) {
    add(`${label}, ${INDEX.runs[ours].name} − ${INDEX.runs[theirs].name}`, (at) => difference(at, label, ours, theirs));
  }
  return found;
}
function filters() {
  const any = (test) => (at) => INDEX.prompts[at].runs.some((run) => run && test(run));
  const found = new Map([
    ["all", { name: "all prompts", test: () => true }],
    ["fooled", { name: "fooled verifier?", test: any((run) => run.fooled) }],
    ["failures", { name: "with failures", test: any((run) => run.failures > 0) }],
    ["none", { name: "without a winner", test: any((run) => !run.values) }],
  ]);
  for (const [label, ours, theirs] of PAIRS) {
    const name = `${INDEX.runs[theirs].name} beats ${INDEX.runs[ours].name} by ${label}`;
    found.set(name, { name, test: (at) => difference(at, label, ours, theirs) < 0 });
    const other = `${INDEX.runs[ours].name} beats ${INDEX.runs[theirs].name} by ${label}`;
    found.set(other, { name: other, test: (at) => difference(at, label, ours, theirs) > 0 });
  }
  for (const category of CATEGORIES) {
    found.set(`category ${category}`, { name: `category: ${category}`, test: (at) => INDEX.prompts[at].category === category });
  }
  return found;
}

const FOOLED = "The verifier ranks this winner far above what any judge does: it may have been fooled.";

function summaryOf(at) {
  const { text, category, runs } = INDEX.prompts[at];
  const flags = [];
  runs.forEach((run, i) => {
    const who = several ? ` (${INDEX.runs[i].name})` : "";
    if (run && run.fooled) flags.push(explain(h("span", { class: "flag", tabindex: "0" }, `fooled?${who}`), FOOLED));
    if (run && run.failures) flags.push(h("span", { class: "flag" }, `${run.failures} without a score${who}`));
  });
  const scores = INDEX.runs.flatMap((run, i) => [
    h("span", { class: "name" }, swatch(i), several ? run.name : run.metrics[0][0]),
    h("span", {}, number(winnerScore(at, i, run.metrics[0][0]))),
  ]);
  return h("summary", {},
    h("span", { class: "thumbs" }, runs.map((run, i) => h("span", { class: "none", color: several ? color(i) : null }))),
    h("span", { class: "text" },
      h("span", { class: "shorten" }, h("b", {}, text || "(empty prompt)"), category ? h("span", { class: "faint" }, `  ${category}`) : null),
      h("span", {}, flags)),
    h("span", { class: "scores" }, scores));
}

function fillThumbs(item, at) {
  const runs = prompt(at);
  if (runs === null) return false;
  const places = item.querySelectorAll(".thumbs > .none");
  runs.forEach((run, i) => {
    if (run && run.thumb && places[i]) {
      places[i].replaceWith(h("img", { src: run.thumb, alt: `the winner of ${INDEX.runs[i].name}`, color: several ? color(i) : null }));
    }
  });
  return true;
}

function prompts() {
  const list = h("div", { id: "list" });
  const count = h("span", { class: "count", "aria-live": "polite" });
  const sorting = sortings(), filtering = filters();
  const state = { find: "", sort: "order", filter: "all" };
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      const at = Number(target.dataset.at);
      if (!fillThumbs(target, at)) loaded.then(() => fillThumbs(target, at));
    }
  }, { rootMargin: "400px" });
  const items = INDEX.prompts.map((_, at) => {
    const item = h("details", { class: "prompt", "data-at": at }, summaryOf(at));
    item.addEventListener("toggle", () => {
      if (item.open && item.children.length === 1) loaded.then(() => item.append(detail(at)));
    });
    watch.observe(item);
    return item;
  });
  const show = () => {
    const wanted = state.find.toLowerCase();
    const { test } = filtering.get(state.filter), { value, descending } = sorting.get(state.sort);
    const kept = INDEX.prompts.map((_, at) => at).filter((at) => test(at) &&
      `${INDEX.prompts[at].text} ${INDEX.prompts[at].category}`.toLowerCase().includes(wanted));
    list.replaceChildren(...ordered(kept, value, descending).map((at) => items[at]));
    count.textContent = kept.length === items.length ? `${whole(kept.length)} prompt${kept.length === 1 ? "" : "s"}` : `${whole(kept.length)} of ${whole(items.length)} prompts`;
  };
  const named = (found) => [...found].map(([key, { name }]) => [key, name]);
  document.getElementById("prompts").append(
    h("h2", {}, "Prompts"),
    h("div", { class: "bar" },
      h("input", { type: "search", placeholder: "find in prompts", "aria-label": "find in prompts",
        oninput: (event) => { state.find = event.target.value; show(); } }),
      options(named(sorting), (key) => { state.sort = key; show(); }, "sort prompts"),
      options(named(filtering), (key) => { state.filter = key; show(); }, "show"),
      count),
    list);
  show();
}

// One prompt.

function detail(at) {
  const runs = prompt(at);
  const present = runs.flatMap((run, i) => (run ? [i] : []));
  return h("div", { class: "detail" },
    h("div", { class: "columns" }, present.map((i) => rounds(i, runs[i]))),
    h("div", { class: "columns" }, promptChart(runs, present), winners(at, present)),
    candidates(at, runs, present),
    failures(runs, present));
}

function rounds(i, shown) {
  const best = shown.rows.find((row) => row.id === shown.best);
  const won = best && shown.rounds.find((round) => round.id === best.id || round.name === pictureName(shown, best));
  const figures = shown.rounds.map((round) => {
    const framed = won === round;
    const alt = `best of round ${round.number}`;
    const image = round.name ? picture(i, round.name, alt, framed ? shown.thumb : null) : nothing(round.why);
    return h("figure", { class: framed ? "won" : null }, explain(image, round.explanation),
      h("figcaption", {}, h("b", {}, number(round.score)), h("br"),
        `round ${round.number}`, round.n ? `, of ${round.n}` : ""));
  });
  if (best && !won) {  // its round's record is lost
    figures.unshift(h("figure", { class: "won" }, rowPicture(i, shown, best),
      h("figcaption", {}, h("b", {}, number(best.values[0])), h("br"), `round ${best.round}`)));
  }
  return h("section", {},
    h("h3", {}, several ? swatch(i) : null, several ? `${INDEX.runs[i].name}: best of each round` : "Best of each round"),
    h("div", { class: "strip", tabindex: "0", role: "group", "aria-label": `rounds of ${INDEX.runs[i].name}` }, figures),
    best ? h("button", { type: "button", onclick: () => showLineage(i, shown, best) }, "Where the winner comes from") : null);
}

function promptChart(runs, present) {
  const views = {};
  for (const cost of INDEX.costs) {
    const lines = present.map((run) => ({ run, points: runs[run].curves[cost] || [] })).filter((line) => line.points.length);
    if (lines.length) views[cost] = { lines, xLabel: cost, yLabel: "best so far", steps: true };
  }
  return h("section", {}, h("h3", {}, "Best so far"),
    Object.keys(views).length ? chart(`Best ${INDEX.runs[present[0]].metrics[0][0]}`, views) : h("p", { class: "faint" }, "Nothing was scored."));
}

function winners(at, present) {
  const labels = [...new Set(present.flatMap((i) => INDEX.runs[i].metrics.map(([label]) => label)))];
  const reference = present[0];
  const rows = labels.map((label) => h("tr", {}, h("th", { class: "text" }, label,
    h("span", { class: "role faint" }, INDEX.runs.some((run) => run.metrics.some(([own, judge]) => own === label && judge)) ? "judge" : "verifier")),
    present.map((i) => {
      const gap = i === reference ? null : difference(at, label, i, reference);
      return h("td", {}, number(winnerScore(at, i, label)),
        gap === null ? null : h("span", { class: "faint" }, ` (${signed(gap)})`));
    })));
  return h("section", {}, h("h3", {}, several ? "Winners, and their difference to the first" : "The winner"),
    h("div", { class: "scroll" }, h("table", {},
      several ? h("thead", {}, h("tr", {}, h("th"), present.map((i) => h("th", { class: "run" }, swatch(i), INDEX.runs[i].name)))) : null,
      h("tbody", {}, rows))));
}

// Candidates.

function columns(shown, at) {
  const run = INDEX.runs[at], rows = shown.rows;
  const has = (test) => rows.some(test);
  const comes = (row) => h("button", { type: "button", class: "link", title: "where it comes from",
    onclick: () => showLineage(at, shown, row) }, `#${row.id}`);
  return [
    { name: "#", value: (row) => row.id, show: comes },
    { name: "round", value: (row) => row.round },
    { name: "step", value: (row) => row.step, show: (row) => `${row.step}/${row.steps}${row.draft ? " draft" : ""}`, when: has((row) => row.steps > 1) },
    ...run.metrics.map(([label, judge], i) => ({ name: label, role: judge ? "judge" : i ? "verifier" : "", value: (row) => row.values[i], show: (row) => number(row.values[i]), down: true })),
    { name: "status", text: true, value: (row) => row.status, show: (row) => h("span", { class: ["ok", "unasked", "unrecorded"].includes(row.status) ? "faint" : "bad" }, row.status) },
    { name: "explanation", text: true, why: true, value: (row) => row.explanation, show: (row) => (row.explanation ? explain(h("button", { type: "button", class: "plain" }, row.explanation), row.explanation) : ""), when: has((row) => row.explanation) },
    { name: "made by", text: true, value: (row) => row.recipe.op ?? "", show: (row) => madeBy(row), when: has((row) => row.recipe.op) },
    { name: "guidance", value: (row) => row.guidance, show: (row) => `×${number(row.guidance)}`, when: has((row) => row.guidance !== 1) },
    { name: "NFE", value: (row) => row.nfe, show: (row) => (row.nfe === null ? "–" : short(row.nfe)), when: has((row) => row.nfe !== null) },
    { name: "seconds", value: (row) => row.seconds, show: (row) => number(row.seconds), when: has((row) => row.seconds !== null) },
    { name: "seed", value: (row) => row.seed, show: (row) => h("span", { class: "mono" }, row.seed) },
  ].filter((column) => column.when !== false);
}
const madeBy = (row) => {
  const { op, of, cosine } = row.recipe;
  return [op ?? "–", cosine === undefined ? "" : ` (cosine ${cosine})`, of === undefined ? "" : h("span", { class: "faint" }, row.parents.length ? ` of #${row.parents.join(", #")}` : "")];
};

function candidates(at, runs, present) {
  const place = h("div");
  const state = { run: present[0], kind: "all", sort: null, descending: true, most: ROWS_AT_ONCE };
  const show = (focused) => {
    place.replaceChildren(...candidateTable(runs[state.run], state, show));
    // The table is new: the keyboard goes on from the column where it was.
    const heads = [...place.querySelectorAll("th button")];
    heads.find((button) => button.dataset.key === focused)?.focus({ preventScroll: true });
  };
  const kinds = h("span");
  const offer = () => {
    const rows = runs[state.run].rows;
    const found = Object.keys(KINDS).filter((kind) => rows.some(KINDS[kind]));
    if (!found.includes(state.kind)) state.kind = "all";
    kinds.replaceChildren(choice(found.map((kind) => [kind, `${kind} ${rows.filter(KINDS[kind]).length}`]), state.kind,
      (kind) => { state.kind = kind; state.most = ROWS_AT_ONCE; show(); }, "which candidates"));
  };
  offer();
  show();
  return h("section", { class: "candidates" }, h("h3", {}, "Candidates"),
    h("div", { class: "bar" },
      present.length > 1 ? choice(present.map((i) => [i, INDEX.runs[i].name]), state.run, (i) => {
        Object.assign(state, { run: i, sort: null, most: ROWS_AT_ONCE });
        offer();
        show();
      }, "run") : null, kinds),
    place);
}

function candidateTable(shown, state, show) {
  const rows = shown.rows.filter(KINDS[state.kind]);
  const all = columns(shown, state.run);
  const by = all.find((column) => column.name === state.sort);
  const listed = by ? ordered(rows, by.value, state.descending) : rows;
  const head = all.map((column) => h("th", {
    class: column.text ? "text" : null,
    "aria-sort": column === by ? (state.descending ? "descending" : "ascending") : null,
  }, h("button", { type: "button", class: "plain", onclick: () => {
    state.descending = column === by ? !state.descending : Boolean(column.down);
    state.sort = column.name;
    show(column.name);
  }, "data-key": column.name }, ...breakable(column.name), column === by ? (state.descending ? " ↓" : " ↑") : ""),
  column.role ? h("span", { class: "role" }, column.role) : null));
  const body = listed.slice(0, state.most).map((row) => h("tr", { class: row.id === shown.best ? "won" : null, "data-id": row.id },
    h("td", { class: "text" }, explain(rowPicture(state.run, shown, row, true), row.explanation)),
    all.map((column) => h("td", { class: column.why ? "why" : column.text ? "text" : null }, column.show ? column.show(row) : String(column.value(row))))));
  const rest = listed.length - body.length;
  return [
    h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { class: "text" }, ""), head)),
      h("tbody", {}, body))),
    rest > 0 ? h("button", { type: "button", onclick: () => { state.most = Infinity; show(); } }, `show ${whole(rest)} more`) : "",
  ];
}

function failures(runs, present) {
  const found = present.flatMap((i) => runs[i].rows
    .filter((row) => !["ok", "unasked", "unrecorded"].includes(row.status))
    .map((row) => h("li", {}, several ? `${INDEX.runs[i].name}, ` : "", `#${row.id}, seed ${row.seed}: `,
      h("b", { class: "bad" }, row.status), row.explanation ? `: ${row.explanation}` : "")));
  if (!found.length) return null;
  return h("section", {}, h("h3", {}, `Without a score (${found.length})`), h("ul", { class: "reasons" }, found));
}

// Lineage.

// All that a candidate comes from, in stages from its noises to itself: each stage holds rows whose
// parents all stand in earlier ones. Ids of rows that are not recorded come back apart.
function lineage(rows, id) {
  const byId = new Map(rows.map((row) => [row.id, row]));
  const depths = new Map(), missing = new Set();
  const stack = [[id, false]], entered = new Set();
  while (stack.length) {
    const [at, done] = stack.pop();
    const row = byId.get(at);
    if (row === undefined) { missing.add(at); continue; }
    if (done) {
      const above = row.parents.filter((parent) => depths.has(parent)).map((parent) => depths.get(parent));
      depths.set(at, above.length ? Math.max(...above) + 1 : 0);
    } else if (!entered.has(at)) {
      entered.add(at);
      stack.push([at, true], ...row.parents.map((parent) => [parent, false]));
    }
  }
  const stages = [];
  for (const [at, depth] of [...depths].sort((a, b) => a[0] - b[0])) (stages[depth] ??= []).push(byId.get(at));
  return { stages, missing: [...missing] };
}

// How a candidate's noise was made, back to a draw, as far as recipes tell.
function origin(rows, recipe) {
  const parts = [];
  for (let depth = 0; recipe && recipe.op && depth < 200; depth += 1) {
    const { op, of, ...rest } = recipe;
    const settings = Object.entries(rest).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
    parts.push(op + (settings.length ? ` (${settings.join(", ")})` : ""));
    const seed = typeof of === "object" && of !== null ? of.seed : of;
    recipe = typeof of === "object" ? of : rows.find((row) => row.seed === of && row.recipe.op)?.recipe;
    if (seed !== undefined && seed !== null) parts[parts.length - 1] += ` of seed ${seed}`;
  }
  return parts.reverse();
}

function howItCame(rows, row) {
  const { op } = row.recipe;
  if (!row.parents.length) return op === "draw" ? "fresh noise" : op ?? "";
  const same = rows.some((parent) => row.parents.includes(parent.id) && parent.seed === row.seed);
  return `${same ? "goes on" : op ?? "comes"} from #${row.parents.join(", #")}`;
}

function showLineage(i, shown, row) {
  const { stages, missing } = lineage(shown.rows, row.id);
  const node = (each) => h("figure", { class: each.id === row.id ? "node won" : "node" },
    explain(rowPicture(i, shown, each, true), each.explanation),
    h("div", {}, h("b", {}, `#${each.id}  ${number(each.values[0])}`)),
    h("div", { class: "faint" }, `round ${each.round}, step ${each.step}/${each.steps}`),
    h("div", { class: "faint" }, howItCame(shown.rows, each)));
  const dialog = document.getElementById("lineage");
  const steps = origin(shown.rows, row.recipe);
  dialog.replaceChildren(
    h("div", { class: "head" },
      h("h2", { id: "lineage-title" }, `Where #${row.id} comes from`),
      h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Close")),
    h("p", { class: "faint" }, steps.length ? `Its noise: ${steps.join(" → ")}` : "The records do not tell how its noise was made."),
    missing.length ? h("p", { class: "bad" }, `Not recorded: #${missing.join(", #")}`) : "",
    h("div", { class: "line" }, stages.map((stage, depth) => h("div", { class: "stage" },
      h("p", {}, depth === 0 ? "start" : depth === stages.length - 1 ? "end" : `stage ${depth + 1}`),
      h("div", { class: "nodes" }, stage.map(node))))));
  dialog.showModal();
}

// What was left out.

function leftOut() {
  if (!INDEX.leftOut.length) return;
  const more = INDEX.leftOutCount - INDEX.leftOut.length;
  document.getElementById("left-out").append(h("h2", {}, `Left out (${whole(INDEX.leftOutCount)})`),
    h("details", { class: "quiet" }, h("summary", {}, "files and lines that could not be used"),
      h("ul", { class: "reasons" }, INDEX.leftOut.map(([run, name, why]) =>
        h("li", {}, several ? `${INDEX.runs[run].name}: ` : "", h("span", { class: "mono" }, name), `: ${why}`)),
      more > 0 ? h("li", {}, `and ${whole(more)} more`) : null)));
}

overview();
pairs();
categories();
curves();
prompts();
leftOut();
