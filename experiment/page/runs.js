// What is told of runs as wholes.

// What is not there to be seen, before anything else: prompts that failed, and runs not yet done.
function notices(showFailed) {
  const found = INDEX.runs.flatMap((run, at) => {
    const who = several ? [...runName(at), ": "] : [];
    const own = [];
    if (run.unfinished) own.push(h("p", {}, who, several ? "unfinished, " : "The run is unfinished: ", `${whole(run.done)} of ${counted(run.prompts, "prompt")} done.`));
    if (run.failedPrompts) {
      const [[reason], ...others] = run.failed;
      const more = run.failedPrompts - run.failed[0][1];
      own.push(h("p", {}, who, h("b", {}, `${whole(run.failedPrompts)} of ${counted(run.prompts, "prompt")} failed`), ": ",
        h("span", { class: "mono" }, reason), others.length ? `, and ${whole(more)} for other reasons` : ""));
    }
    return own;
  });
  if (!found.length) return;
  const any = INDEX.runs.some((run) => run.failedPrompts);
  document.getElementById("notices").append(h("div", { class: "notice", role: "status" }, h("div", {}, found),
    any ? h("button", { type: "button", onclick: showFailed }, "Show the failed prompts") : null));
}

function overview() {
  const differs = (name) => new Set(INDEX.runs.map((run) => run[name])).size > 1 && INDEX.runs.some((run) => run[name] !== run.name);
  const told = ["method", "model", "verifier"].filter(differs);
  const costs = [["images", whole], ["NFE", whole], ["seconds", seconds]].filter(([cost]) => INDEX.runs.some((run) => run.totals[cost] !== null));
  const head = h("tr", {}, h("th", { class: "text" }, several ? "run" : "search"),
    LABELS.map((label) => h("th", {}, ...breakable(label), h("span", { class: "role" }, role(label)))),
    h("th", {}, "prompts"), costs.map(([cost]) => h("th", {}, cost === "seconds" ? "time" : cost)),
    told.map((name) => h("th", { class: "text" }, name === "method" ? "search" : name)));
  const rows = INDEX.runs.map((run, at) => h("tr", {},
    h("th", { class: "text" }, several ? runName(at) : run.name),
    LABELS.map((label) => h("td", {}, run.means[label] ? estimate(run.means[label]) : "–")),
    h("td", {}, run.winners === run.prompts ? whole(run.prompts) : `${whole(run.winners)} of ${whole(run.prompts)}`,
      run.failedPrompts ? h("span", { class: "bad role" }, `${whole(run.failedPrompts)} failed`) : null,
      run.unfinished ? h("span", { class: "bad role" }, "unfinished") : null),
    costs.map(([cost, show]) => h("td", {}, show(run.totals[cost]))),
    told.map((name) => h("td", { class: "text" }, run[name] || "–"))));
  document.getElementById("overview").append(
    h("h2", {}, several ? "Runs" : "The run"),
    table(head, rows, { card: true, label: "runs" }),
    h("p", { class: "faint note" }, `Means of the winners over prompts${sharesAll() ? "" : ", which are not the same in all runs"}, with 95 % intervals from ${INDEX.fewest} prompts on (Wilson's where all scores are 0 or 1, else by bootstrap).`),
    trust());
}
const inRun = (at, run) => Boolean(shownOf(at, run));
const sharesAll = () => INDEX.prompts.every((_, at) => INDEX.runs.every((_, run) => inRun(at, run)));

// How far the verifier can be trusted, and what it could not judge.
function trust() {
  const notes = [];
  INDEX.runs.forEach((run, at) => {
    const note = (text) => notes.push(h("li", {}, several ? [...runName(at), ": "] : null, text));
    for (const [label, rho] of Object.entries(run.correlations)) {
      if (rho !== null) note(`rank correlation of the verifier and ${label} over winners ${number(rho)}`);
    }
    const failed = Object.entries(run.failures);
    if (failed.length) note(`candidates without a score: ${failed.map(([status, n]) => `${whole(n)} ${status}`).join(", ")}`);
    if (run.fooled) note(`${counted(run.fooled, "winner")} that the verifier ranks far above any judge: it may have been fooled`);
  });
  if (!notes.length) return "";
  const list = h("ul", { class: "reasons" }, notes);
  if (notes.length <= FEW) return list;
  return h("details", { class: "quiet" }, h("summary", {}, `What judges say, and what has no score (${notes.length})`), list);
}

// The differences of all runs to one of them.
function pairs() {
  if (!several) return;
  const section = document.getElementById("pairs");
  section.append(h("h2", {}, "Runs against each other"));
  if (!INDEX.pairs.length) {
    section.append(h("p", {}, whyNoPairs()));
    return;
  }
  const labels = [...new Set(INDEX.pairs.map(([label]) => label))];
  const place = h("div");
  const show = (reference) => place.replaceChildren(pairTable(labels, reference));
  if (INDEX.runs.length > 2) {
    const names = INDEX.runs.map((run, at) => [at, many ? `${at + 1}  ${run.name}` : run.name]);
    section.append(h("div", { class: "bar" }, h("span", {}, "differences to"), options({ "": names }, (key) => show(Number(key)), "compared with")));
  }
  show(0);
  section.append(place,
    h("p", { class: "faint note" }, `Paired by prompt; a tie is half a win. No intervals below ${INDEX.fewest} prompts. Bold: p < ${INDEX.error} after Holm's correction for the runs in a column, by the exact sign test (McNemar's) where all scores are 0 or 1, else by a sign-flip randomization test.`));
}
function whyNoPairs() {
  const shared = INDEX.prompts.some(({ runs }) => runs.filter(Boolean).length > 1);
  if (!shared) return "No prompt is in more than one of these runs, so their winners cannot be compared prompt by prompt.";
  const metrics = LABELS.some((label) => INDEX.runs.filter((_, run) => hasMetric(run, label)).length > 1);
  if (!metrics) return "No metric is in more than one of these runs, so their scores cannot be compared: let one run's verifier be a judge of the other.";
  return "No prompt has a winner with a score in more than one of these runs.";
}
// What is recorded is a later run against an earlier one; the other way round its sign turns.
function pairOf(label, ours, theirs) {
  const found = INDEX.pairs.find(([own, a, b]) => own === label && ((a === ours && b === theirs) || (a === theirs && b === ours)));
  if (!found) return null;
  const [, a, , prompts, difference, wins, p] = found;
  if (a === ours) return { prompts, difference, wins, p };
  const turned = (values, turn) => [values[0], values[2], values[1]].map((value) => (value === null ? null : turn(value)));
  return { prompts, difference: turned(difference, (value) => (value === 0 ? 0 : -value)), wins: turned(wins, (value) => 1 - value), p };
}
function pairTable(labels, reference) {
  const others = INDEX.runs.flatMap((_, run) => (run === reference ? [] : [run]));
  const columns = labels.map((label) => others.map((run) => pairOf(label, run, reference)));
  const adjusted = columns.map((column) => holm(column.map((pair) => pair?.p ?? null)));
  const rows = others.map((run, row) => {
    const found = columns.map((column) => column[row]);
    const most = Math.max(0, ...found.map((pair) => pair?.prompts ?? 0));
    return h("tr", {}, h("th", { class: "text" }, runName(run), INDEX.runs.length > 2 ? null : [h("span", { class: "faint" }, " − "), ...runName(reference)].flat()),
      found.flatMap((pair, column) => {
        if (pair === null) return [h("td", { colspan: 2, class: "faint" }, most ? "not in both" : "–")];
        const p = adjusted[column][row], sure = p !== null && p < INDEX.error;
        const fewer = pair.prompts < most ? h("span", { class: "faint role" }, counted(pair.prompts, "prompt")) : null;
        return [h("td", { class: sure ? "sure" : null }, estimate(pair.difference, signed), fewer),
          h("td", {}, estimate(pair.wins, percent))];
      }),
      h("td", {}, most ? whole(most) : h("span", { class: "faint" }, "none shared")));
  });
  return table([
    h("tr", {}, h("th", { class: "text" }), labels.map((label) => h("th", { colspan: 2, class: "over" }, ...breakable(label))), h("th")),
    h("tr", {}, h("th", { class: "text" }, "runs"), labels.flatMap(() => [h("th", {}, "difference"), h("th", {}, "prompts won")]), h("th", {}, "prompts")),
  ], rows, { card: true, label: "runs against each other", kind: labels.length > 2 ? "tight" : null });
}

function curves() {
  const metrics = [...new Set(INDEX.runs.map((run) => run.metrics[0][0]))];
  const figures = [];
  for (const metric of metrics) {
    const own = INDEX.runs.flatMap((run, at) => run.metrics[0][0] === metric ? [at] : []);
    const views = {};
    for (const cost of INDEX.costs) {
      const lines = own.map((run) => ({ run, points: INDEX.runs[run].curves[cost] || [] })).filter((line) => line.points.length);
      if (lines.length) views[cost] = { lines, xLabel: `${cost} per prompt`, yLabel: metric, steps: true };
    }
    if (Object.keys(views).length) figures.push(chart(`Best ${metric} so far, mean`, views));
    const lines = own.map((run) => ({ run, points: INDEX.runs[run].bestOfN })).filter((line) => line.points.length > 1);
    if (lines.length) figures.push(chart("Expected best of n draws", { n: { lines, xLabel: "n", yLabel: metric, steps: false } }));
  }
  if (!figures.length) return;
  document.getElementById("curves").append(h("h2", {}, "Curves"), h("div", { class: "charts" }, figures),
    many ? h("p", { class: "faint note" }, "Point at a run's name to bring out its line, with its interval.") : "");
}

function categories() {
  if (CATEGORIES.length < 2) return;
  const place = h("div");
  const show = (label) => {
    const having = INDEX.runs.flatMap((_, run) => (hasMetric(run, label) ? [run] : []));
    const rows = CATEGORIES.map((category) => {
      const own = INDEX.prompts.map((_, at) => at).filter((at) => INDEX.prompts[at].category === category);
      const means = having.map((run) => {
        const known = own.map((at) => winnerScore(at, run, label)).filter((score) => score !== null);
        return h("td", {}, known.length ? number(average(known)) : "–");
      });
      return h("tr", {}, h("th", { class: "text" }, category), h("td", {}, whole(own.length)), means);
    });
    place.replaceChildren(table(h("tr", {}, h("th", { class: "text" }, "category"), h("th", {}, "prompts"),
      having.map((run) => h("th", {}, several ? (many ? swatch(run) : runName(run)) : breakable(label)))), rows, { card: true, label: "categories" }));
  };
  show(LABELS[0]);
  document.getElementById("categories").append(h("h2", {}, "Categories"),
    LABELS.length > 1 ? h("div", { class: "bar" }, choice(LABELS.map((label) => [label, label]), LABELS[0], show, "metric")) : "",
    place, h("p", { class: "faint note" }, "Means over winners."));
}
