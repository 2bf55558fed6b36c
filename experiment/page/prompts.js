// The list of prompts.

function sortings() {
  const found = new Map([["order", { group: "", name: "in order", value: (at) => at, descending: false }]]);
  const add = (group, name, value) => {
    found.set(`${name} down`, { group, name: `${name}, highest first`, value, descending: true });
    found.set(`${name} up`, { group, name: `${name}, lowest first`, value, descending: false });
  };
  for (const label of LABELS) {
    INDEX.runs.forEach((run, i) => {
      if (hasMetric(i, label)) add(several ? label : "", several ? `${label} of ${run.name}` : label, (at) => winnerScore(at, i, label));
    });
  }
  for (const [label, ours, theirs] of PAIRS) {
    add("differences", `${label}, ${INDEX.runs[ours].name} − ${INDEX.runs[theirs].name}`, (at) => difference(at, label, ours, theirs));
  }
  return found;
}
function filters() {
  const any = (test) => (at) => INDEX.prompts[at].runs.some((run) => run && test(run));
  const found = new Map();
  const add = (key, group, name, test) => {
    const number = INDEX.prompts.filter((_, at) => test(at)).length;
    if (number || key === "all") found.set(key, { group, name: key === "all" ? name : `${name} (${whole(number)})`, test });
  };
  add("all", "", "all prompts", () => true);
  add("failed", "", "failed", any((run) => run.failed));
  add("unfinished", "", "unfinished", any((run) => run.unfinished));
  add("none", "", "without a winner", any((run) => !run.values));
  add("failures", "", "with candidates without a score", any((run) => run.failures > 0));
  add("fooled", "", "fooled verifier?", any((run) => run.fooled));
  for (const [label, ours, theirs] of PAIRS) {
    for (const [a, b] of [[theirs, ours], [ours, theirs]]) {
      const name = `${INDEX.runs[a].name} beats ${INDEX.runs[b].name} by ${label}`;
      add(name, "differences", name, (at) => difference(at, label, a, b) > 0);
    }
  }
  for (const category of CATEGORIES) {
    add(`category ${category}`, "categories", category, (at) => INDEX.prompts[at].category === category);
  }
  return found;
}
// What `options` takes, by the groups' titles.
function grouped(found) {
  const groups = {};
  for (const [key, { group, name }] of found) (groups[group] ??= []).push([key, name]);
  return groups;
}

const FOOLED = "The verifier ranks this winner far above what any judge does: it may have been fooled.";

function flagsOf(at) {
  return INDEX.prompts[at].runs.flatMap((run, i) => {
    if (!run) return [];
    const who = several ? ` (${INDEX.runs[i].name})` : "";
    return [
      run.failed ? h("span", { class: "flag" }, h("b", {}, `failed${who}: `), run.failed) : null,
      run.unfinished ? h("span", { class: "flag" }, `unfinished${who}`) : null,
      run.fooled ? explain(h("span", { class: "flag", tabindex: "0" }, `fooled?${who}`), FOOLED) : null,
      run.failures ? h("span", { class: "flag" }, `${counted(run.failures, "candidate")} without a score${who}`) : null,
    ];
  });
}

function summaryOf(at) {
  const { text, category } = INDEX.prompts[at];
  const best = highest(at);
  const words = h("span", { class: "text" },
    h("span", { class: "shorten" }, h("b", {}, text || "(empty prompt)"), category ? h("span", { class: "faint" }, `  ${category}`) : null),
    h("span", { class: "flags" }, flagsOf(at)));
  if (many) {
    return h("summary", { class: "crowd" }, words,
      h("span", { class: "tiles" }, INDEX.runs.map((_, run) => h("span", { class: "tile" }, thumbPlace(at, run), h("span", { class: "beneath" }, swatch(run), tileScore(at, run, best))))));
  }
  return h("summary", {},
    h("span", { class: "thumbs" }, INDEX.runs.map((_, run) => thumbPlace(at, run))),
    words,
    h("span", { class: "scores" }, INDEX.runs.flatMap((run, i) => [
      h("span", { class: "name" }, several ? runName(i) : run.metrics[0][0]), tileScore(at, i, best)])));
}

// The list; what comes back opens a prompt of it, or shows those that a filter keeps.
function prompts() {
  const list = h("div", { id: "list" });
  const count = h("span", { class: "count", "aria-live": "polite" });
  const sorting = sortings(), filtering = filters();
  const state = { find: "", sort: "order", filter: "all" };
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watch.unobserve(target);
      fillThumbs(target, Number(target.dataset.at));
    }
  }, { rootMargin: "400px" });
  const items = INDEX.prompts.map((_, at) => {
    const item = h("details", { class: "prompt", "data-at": at }, summaryOf(at));
    item.addEventListener("toggle", () => {
      if (item.open && item.children.length === 1) withPrompt(at, () => { item.append(detail(at)); settle(item); });
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
    count.textContent = kept.length === items.length ? counted(kept.length, "prompt") : `${whole(kept.length)} of ${counted(items.length, "prompt")}`;
  };
  const find = h("input", { type: "search", placeholder: "find in prompts", "aria-label": "find in prompts",
    oninput: (event) => { state.find = event.target.value; show(); } });
  const filter = options(grouped(filtering), (key) => { state.filter = key; show(); }, "show");
  const section = document.getElementById("prompts");
  section.append(h("h2", {}, "Prompts"),
    h("div", { class: "bar" }, find, options(grouped(sorting), (key) => { state.sort = key; show(); }, "sort prompts"), filter, count),
    list);
  show();
  const narrow = (key) => {
    [find.value, state.find, filter.value, state.filter] = ["", "", key, key];
    show();
  };
  return {
    open(at) {
      if (!items[at].isConnected) narrow("all");
      items[at].open = true;
      items[at].scrollIntoView();
    },
    keep(key) {
      narrow(key);
      section.scrollIntoView();
    },
  };
}
