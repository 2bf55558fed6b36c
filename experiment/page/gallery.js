// The winners of the first prompts, to be seen before any number.

const SHOWN = 16;  // prompts
// Of many runs the first, and those with the highest means.
function exhibited() {
  const mean = (run) => INDEX.runs[run].means[INDEX.runs[run].metrics[0][0]]?.[0] ?? -Infinity;
  const [first, ...others] = INDEX.runs.map((_, run) => run);
  if (!many) return [first, ...others];
  return [first, ...others.sort((a, b) => mean(b) - mean(a)).slice(0, 2)].sort((a, b) => a - b);
}

function gallery(open) {
  const runs = exhibited();
  const won = INDEX.prompts.map((_, at) => at).filter((at) => runs.some((run) => shownOf(at, run)?.values));
  const shown = won.slice(0, SHOWN);
  if (!shown.length) return;
  const columns = shown.map((at) => {
    const { text } = INDEX.prompts[at], best = highest(at);
    const column = h("button", { type: "button", class: "exhibit", title: text, onclick: () => open(at) },
      runs.map((run) => h("span", { class: "tile" }, thumbPlace(at, run), h("span", { class: "beneath" }, several ? swatch(run) : null, tileScore(at, run, best)))),
      h("span", { class: "words" }, text || "(empty prompt)"));
    fillThumbs(column, at);
    return column;
  });
  // One run's in two rows, if they are many; several runs' each below the other.
  const across = several || shown.length <= SHOWN / 2 ? shown.length : Math.ceil(shown.length / 2);
  const strip = h("div", { class: "exhibits", style: `--across: ${across}; --high: ${several ? runs.length : 1}` }, columns);
  document.getElementById("gallery").append(
    h("div", { class: "titled" }, h("h2", {}, "Winners"),
      several ? h("span", { class: "legend" }, runs.map((run) => h("span", {}, runName(run)))) : null,
      h("span", { class: "count" }, [FIRST ? `scores: ${FIRST}` : null, won.length > shown.length ? `the first ${whole(shown.length)} of ${counted(INDEX.prompts.length, "prompt")}` : null,
        runs.length < INDEX.runs.length ? "the first run and the two highest means" : null].filter(Boolean).join(", "))),
    scroller(strip, { label: "winners" }));
}
function tileScore(at, run, best) {
  const score = ownScore(at, run);
  return h("span", { class: score !== null && score === best ? "score top" : "score" }, score === null ? "–" : number(score));
}
