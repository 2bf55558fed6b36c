// One prompt, opened.

function detail(at) {
  const runs = prompt(at);
  const present = runs.flatMap((run, i) => (run ? [i] : []));
  const plot = promptChart(runs, present);
  const all = h("div", { class: several ? "detail" : "detail alone" },
    h("div", { class: many ? "winners crowd" : "winners", style: `--runs: ${present.length}` },
      present.map((i) => winner(at, i, runs[i], present[0])), several ? null : plot),
    h("div", { class: "columns" }, present.map((i) => rounds(i, runs[i]))),
    several ? plot : null);
  if (present.some((i) => runs[i].rows.length)) all.append(candidates(runs, present));
  const without = failures(runs, present);
  if (without) all.append(without);
  return all;
}
// What can only be done once the detail has its place: each strip begins with its winner in view.
function settle(item) {
  for (const strip of item.querySelectorAll(".strip")) {
    const won = strip.querySelector(".won"), inner = strip.parentElement;
    if (won) inner.scrollLeft = won.offsetLeft - (inner.clientWidth - won.offsetWidth) / 2;
  }
}

// A run's winner, what each verifier and judge says of it, and the difference to the first run's.
function winner(at, i, shown, reference) {
  const best = bestOf(shown), said = shownOf(at, i);
  const name = several ? h("h3", {}, runName(i)) : h("h3", {}, "The winner");
  if (!best) {
    return h("section", { class: "winner" }, name, nothing(missing(said)),
      said.failed ? h("p", { class: "bad" }, said.failed) : h("p", { class: "faint" }, "No finished image of it has a score."));
  }
  const rows = INDEX.runs[i].metrics.filter(([label]) => winnerScore(at, i, label) !== null).map(([label, judge]) => {
    const gap = i === reference ? null : difference(at, label, i, reference);
    return h("tr", {}, h("th", {}, ...breakable(label), several ? null : h("span", { class: "role faint" }, judge ? "judge" : "verifier")),
      h("td", {}, number(winnerScore(at, i, label)), gap ? h("span", { class: "role faint" }, signed(gap)) : null));
  });
  return h("section", { class: "winner" }, name,
    explain(rowPicture(i, shown, best, many), best.explanation),
    h("div", {}, h("table", { class: "plain" }, h("tbody", {}, rows)),
      said.failed ? h("p", { class: "bad clamp" }, `failed: ${said.failed}`) : null,
      best.explanation && !many ? explain(h("p", { class: "faint clamp", tabindex: "0" }, best.explanation), best.explanation) : null,
      lineageButton(i, shown, best)));
}

function rounds(i, shown) {
  if (!shown.rounds.length) return null;
  const best = bestOf(shown);
  const won = best && (shown.rounds.find((round) => round.name !== null && round.name === pictureName(shown, best))
    ?? shown.rounds.find((round) => round.id === best.id));
  const noun = shown.rounds.some((round) => round.name?.endsWith(".mp4")) ? "video" : "image";
  const figures = shown.rounds.map((round) => {
    const framed = won === round;
    const alt = `best of round ${round.number}`;
    const image = round.name ? picture(i, round.name, alt, { poster: framed ? shown.thumb : null, small: true }) : nothing(round.why);
    return h("figure", { class: framed ? "won" : null }, explain(image, round.explanation),
      h("figcaption", {}, h("b", {}, number(round.score)), h("br"), `round ${round.number}`,
        round.n ? [", ", h("span", { class: "together" }, counted(round.n, noun))] : "",
        round.rejected ? h("span", { class: "role" }, "rejected") : null));
  });
  return h("section", {},
    h("h3", {}, several ? [...runName(i), ": best of each round"] : "Best of each round"),
    scroller(h("div", { class: "strip" }, figures), { label: `rounds of ${INDEX.runs[i].name}` }));
}

function promptChart(runs, present) {
  const views = {};
  for (const cost of INDEX.costs) {
    const lines = present.map((run) => ({ run, points: runs[run].curves[cost] || [] })).filter((line) => line.points.length);
    if (lines.length) views[cost] = { lines, xLabel: cost, yLabel: "best so far", steps: true };
  }
  if (!Object.keys(views).length) return null;
  return h("section", { class: "so-far" }, chart(`Best ${INDEX.runs[present[0]].metrics[0][0]} so far`, views));
}

function failures(runs, present) {
  const found = present.flatMap((i) => runs[i].rows
    .filter((row) => !FINE.includes(row.status))
    .map((row) => h("li", {}, several ? `${INDEX.runs[i].name}, ` : "", `#${row.id}, seed ${row.seed}: `,
      h("b", { class: "bad" }, row.status), row.explanation ? `: ${row.explanation}` : "")));
  if (!found.length) return null;
  return h("section", {}, h("h3", {}, `Candidates without a score (${found.length})`), h("ul", { class: "reasons" }, found));
}
