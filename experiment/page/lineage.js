// Where a candidate comes from, and how it is made again.

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

// What a recipe's operation does, in words; `from` names what it starts from.
const midway = (at) => (at ? ` at step ${at}` : "");
const OPERATIONS = {
  draw: () => "fresh noise",
  perturb: ({ at, cosine }, from) => `neighbour${from}${midway(at)}${cosine === undefined ? "" : `, cosine ${cosine}`}`,
  renoise: ({ at, to }, from) => `noised again${from}${at === undefined ? "" : `, from step ${at}`}${to === undefined ? "" : ` back to ${to || "the start"}`}`,
  fork: ({ at }, from) => `copy${from}${midway(at)}, with noise of its own from there`,
  place: (_, from) => `noise that the search composed${from}`,
};
const operation = (recipe, from) => (OPERATIONS[recipe.op] ? OPERATIONS[recipe.op](recipe, from) : `${recipe.op ?? "comes"}${from}`);

// How a candidate's noise was made, back to a draw, as far as recipes tell.
function origin(rows, row) {
  const parts = [];
  let { recipe, seed } = row;
  for (let depth = 0; recipe && recipe.op && depth < 200; depth += 1) {
    parts.push(`${operation(recipe, "")} (seed ${seed})`);
    const { of } = recipe;
    seed = typeof of === "object" && of !== null ? of.seed : of;
    recipe = typeof of === "object" ? of : rows.find((other) => other.seed === of && other.recipe.op)?.recipe;
  }
  return parts.reverse();
}

function howItCame(rows, row) {
  if (!row.parents.length) return row.recipe.op ? operation(row.recipe, "") : "";
  const named = row.parents.length > 4 ? `${row.parents.length} others` : `#${row.parents.join(", #")}`;
  const same = rows.some((parent) => row.parents.includes(parent.id) && parent.seed === row.seed);
  return same ? `goes on from ${named}` : operation(row.recipe, ` of ${named}`);
}

// Whether there is anything to tell: tt-scale-flux's trees record neither recipes nor parents.
const tells = (shown, row) => shown.index !== null || row.parents.length > 0 || Boolean(row.recipe.op);
function lineageButton(i, shown, row) {
  if (!tells(shown, row)) return null;
  const comes = row.parents.length > 0 || (row.recipe.op && row.recipe.op !== "draw");
  return h("button", { type: "button", onclick: () => showLineage(i, shown, row) },
    comes ? "Where it comes from" : "How to make it again");
}

// The command that makes it again. A page that was opened from a disk knows where its run lies there.
function replayCommand(i, shown, row) {
  let folder = INDEX.runs[i].folder;
  if (location.protocol === "file:") {
    folder = decodeURIComponent(new URL(folder || ".", location.href).pathname).replace(/^\/(?=[A-Za-z]:)/, "").replace(/\/$/, "");
  } else folder = "RUN";
  const quoted = /^[\w@%+=:,./-]+$/.test(folder) ? folder : `'${folder.replaceAll("'", "'\\''")}'`;
  return `python main.py --replay ${quoted} --candidate ${shown.index}:${row.id}`;
}
function command(text) {
  const code = h("code", { class: "mono" }, text);
  const button = h("button", { type: "button", onclick: () => {
    navigator.clipboard?.writeText(text).then(() => { button.textContent = "Copied"; }, () => getSelection().selectAllChildren(code));
  } }, "Copy");
  return h("div", { class: "command" }, code, button);
}

function showLineage(i, shown, row) {
  const { stages, missing } = lineage(shown.rows, row.id);
  const node = (each) => h("figure", { class: each.id === row.id ? "node won" : "node" },
    explain(rowPicture(i, shown, each), each.explanation),
    h("div", {}, h("b", {}, `#${each.id}`), each.values[0] === null ? "" : h("b", { class: "beside" }, number(each.values[0]))),
    h("div", { class: "faint" }, `round ${each.round}`, each.step < each.steps ? `, step ${each.step} of ${each.steps}` : "", each.draft ? ", draft" : ""),
    h("div", { class: "faint" }, howItCame(shown.rows, each)));
  const dialog = document.getElementById("lineage");
  const steps = origin(shown.rows, row);
  const known = shown.index !== null;
  dialog.replaceChildren(
    h("div", { class: "head" },
      h("h2", { id: "lineage-title" }, stages.length > 1 ? `Where #${row.id} comes from` : `Candidate #${row.id}`),
      h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Close")),
    missing.length ? h("p", { class: "bad" }, `Not recorded: #${missing.join(", #")}`) : "",
    h("div", { class: "line" }, stages.map((stage, depth) => h("div", { class: "stage" },
      stages.length > 1 ? h("p", {}, depth === 0 ? "start" : depth === stages.length - 1 ? "end" : `stage ${depth + 1}`) : null,
      h("div", { class: "nodes" }, stage.map(node))))),
    h("h3", {}, "Its noise"),
    steps.length ? h("ol", { class: "origin", tabindex: steps.length > 8 ? "0" : null }, steps.map((step) => h("li", {}, step))) : h("p", { class: "faint" }, "The records do not tell how it was made."),
    known ? h("h3", {}, "To make it again, bit for bit") : "",
    known ? command(replayCommand(i, shown, row)) : "");
  dialog.showModal();
}
