"use strict";
// Everything shown is made by createElement and text nodes, so no prompt can become markup.

const INDEX = JSON.parse(document.getElementById("index").textContent);
const SVG = "http://www.w3.org/2000/svg";
const COLORS = 8;
const FEW = 4;  // runs that can be shown side by side by name; more are numbered
const several = INDEX.runs.length > 1;
const many = INDEX.runs.length > FEW;

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

// A name that may be broken behind its underscores and slashes.
const breakable = (name) => name.split(/(?<=[_/])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
const counted = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;

// Runs: a color each, and of many a number, for colors come round again.
const color = (run) => `var(--run${run % COLORS})`;
const swatch = (run) => h("span", { class: many ? "swatch numbered" : "swatch", color: color(run), "aria-hidden": "true" },
  many ? String(run + 1) : null);
const runName = (run) => {
  const [first, ...rest] = breakable(INDEX.runs[run].name);
  return [h("span", { class: "together" }, swatch(run), first), ...rest];
};
const hasMetric = (run, label) => INDEX.runs[run].metrics.some(([own]) => own === label);
const LABELS = [...new Set(INDEX.runs.flatMap((run) => run.metrics.map(([label]) => label)))];
const role = (label) => (INDEX.runs.some((run) => run.metrics.some(([own, judge]) => own === label && !judge)) ? "verifier" : "judge");
// The metric that all runs went by, if it is one: then the highest score is the best.
const FIRST = INDEX.runs.every((run) => run.metrics[0][0] === LABELS[0]) ? LABELS[0] : null;

// A part that scrolls sideways where it is too wide, and shows on which side there is more.
const watchWidth = new ResizeObserver((entries) => entries.forEach(({ target }) => target.dispatchEvent(new Event("scroll"))));
function scroller(content, { card = false, label = null, kind = null } = {}) {
  const inner = h("div", { class: "scroll", role: label ? "group" : null, "aria-label": label }, content);
  const frame = h("div", { class: ["frame", card && "card", kind].filter(Boolean).join(" ") }, inner);
  inner.addEventListener("scroll", () => {
    const room = inner.scrollWidth - inner.clientWidth;
    frame.toggleAttribute("data-before", inner.scrollLeft > 2);
    frame.toggleAttribute("data-behind", inner.scrollLeft < room - 2);
    if (room > 2) inner.tabIndex = 0;  // the keyboard can scroll it, too
    else inner.removeAttribute("tabindex");
  }, { passive: true });
  watchWidth.observe(inner);
  return frame;
}
function table(head, body, options) {
  const rows = Array.isArray(head) ? head : [head];
  return scroller(h("table", {}, rows[0] ? h("thead", {}, rows) : null, h("tbody", {}, body)), options);
}

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
// groups: {title: [[key, name]]}; those of an empty title stand by themselves.
function options(groups, pick, label) {
  const list = h("select", { "aria-label": label, onchange: (event) => pick(event.target.value) });
  for (const [title, names] of Object.entries(groups)) {
    const found = names.map(([key, name]) => h("option", { value: key }, name));
    list.append(...(title === "" ? found : [h("optgroup", { label: title }, found)]));
  }
  return list;
}
