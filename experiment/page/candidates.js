// The table of a prompt's candidates.

const ROWS_AT_ONCE = 150;
const KINDS = {
  all: () => true,
  finished,
  previews: (row) => row.step < row.steps,
  drafts: (row) => row.draft,
  "without a score": (row) => !scored(row),
};

function columns(shown, at) {
  const run = INDEX.runs[at], rows = shown.rows;
  const has = (test) => rows.some(test);
  const comes = (row) => (tells(shown, row)
    ? h("button", { type: "button", class: "link", title: "where it comes from", onclick: () => showLineage(at, shown, row) }, `#${row.id}`)
    : `#${row.id}`);
  return [
    { name: "#", value: (row) => row.id, show: comes },
    { name: "round", value: (row) => row.round },
    { name: "step", value: (row) => row.step, show: (row) => `${row.step}/${row.steps}${row.draft ? " draft" : ""}`, when: has((row) => row.step < row.steps || row.draft) },
    ...run.metrics.map(([label, judge], i) => ({ name: label, role: judge ? "judge" : i ? "verifier" : "", value: (row) => row.values[i], show: (row) => number(row.values[i]), down: true })),
    { name: "status", text: true, value: (row) => row.status, show: (row) => h("span", { class: FINE.includes(row.status) ? "faint" : "bad" }, row.status), when: has((row) => row.status !== "ok") },
    { name: "explanation", text: true, why: true, value: (row) => row.explanation, show: (row) => (row.explanation ? explain(h("button", { type: "button", class: "plain" }, row.explanation), row.explanation) : ""), when: has((row) => row.explanation) },
    { name: "made by", text: true, value: (row) => row.recipe.op ?? "", show: (row) => howItCame(rows, row), when: has((row) => row.recipe.op) },
    { name: "guidance", value: (row) => row.guidance, show: (row) => `×${number(row.guidance)}`, when: has((row) => row.guidance !== 1) },
    { name: "NFE", value: (row) => row.nfe, show: (row) => (row.nfe === null ? "–" : short(row.nfe)), when: has((row) => row.nfe !== null) },
    { name: "seconds", value: (row) => row.seconds, show: (row) => number(row.seconds), when: has((row) => row.seconds !== null) },
    { name: "seed", value: (row) => row.seed, show: (row) => h("span", { class: "mono" }, row.seed) },
  ].filter((column) => column.when !== false);
}

function candidates(runs, present) {
  const place = h("div");
  const own = present.filter((i) => runs[i].rows.length);
  const state = { run: own[0], kind: "all", sort: null, descending: true, most: ROWS_AT_ONCE };
  const show = (focused) => {
    place.replaceChildren(...candidateTable(runs[state.run], state, show));
    // The table is new: the keyboard goes on from the column where it was.
    const heads = [...place.querySelectorAll("th button")];
    heads.find((button) => button.dataset.key === focused)?.focus({ preventScroll: true });
  };
  const kinds = h("span");
  const offer = () => {
    const rows = runs[state.run].rows;
    const number = (kind) => rows.filter(KINDS[kind]).length;
    // One that keeps all of them is no choice.
    const found = Object.keys(KINDS).filter((kind) => kind === "all" || (number(kind) && number(kind) < rows.length));
    if (!found.includes(state.kind)) state.kind = "all";
    kinds.replaceChildren(found.length > 1 ? choice(found.map((kind) => [kind, `${kind} ${number(kind)}`]), state.kind,
      (kind) => { state.kind = kind; state.most = ROWS_AT_ONCE; show(); }, "which candidates") : "");
  };
  const turn = (i) => {
    Object.assign(state, { run: Number(i), sort: null, most: ROWS_AT_ONCE });
    offer();
    show();
  };
  offer();
  show();
  const names = own.map((i) => [i, many ? `${i + 1}  ${INDEX.runs[i].name}` : INDEX.runs[i].name]);
  return h("section", { class: "candidates" }, h("h3", {}, several ? "Candidates" : `Candidates (${runs[state.run].rows.length})`),
    h("div", { class: "bar" },
      own.length < 2 ? null : many ? options({ "": names }, turn, "run") : choice(names, state.run, turn, "run"), kinds),
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
    h("td", { class: "text" }, explain(rowPicture(state.run, shown, row), row.explanation)),
    all.map((column) => h("td", { class: column.why ? "why" : column.text ? "text" : null }, column.show ? column.show(row) : String(column.value(row))))));
  const rest = listed.length - body.length;
  return [
    table(h("tr", {}, h("th", { class: "text" }, ""), head), body, { label: "candidates" }),
    rest > 0 ? h("button", { type: "button", onclick: () => { state.most = Infinity; show(); } }, `show ${whole(rest)} more`) : "",
  ];
}
