// The records of one prompt, parsed when they are first needed.

const FIELDS = ["id", "round", "step", "steps", "seed", "status", "values", "guidance", "draft",
  "nfe", "seconds", "parents", "picture", "explanation", "recipe"];
const parsed = new Map();
function prompt(at) {
  if (!parsed.has(at)) {
    const source = document.getElementById(`p${at}`);
    // Of a long file not all may have arrived yet, or the element only in part.
    if (source === null || (document.readyState === "loading" && source.nextSibling === null)) return null;
    const runs = JSON.parse(source.textContent).map((run) => run && {
      ...run,
      rows: run.rows.map((row) => Object.fromEntries(FIELDS.map((name, i) => [name, row[i]]))),
    });
    parsed.set(at, runs);
  }
  return parsed.get(at);
}
// Calls back with the records as soon as they are there.
function withPrompt(at, use) {
  const runs = prompt(at);
  if (runs !== null) use(runs);
  else setTimeout(() => withPrompt(at, use), 40);
}

const finished = (row) => row.step === row.steps && !row.draft;
const scored = (row) => row.values[0] !== null;
const FINE = ["ok", "unasked", "unrecorded"];
const bestOf = (shown) => shown.rows.find((row) => row.id === shown.best);

// What the index says of prompts.

const shownOf = (at, run) => INDEX.prompts[at].runs[run];
const winnerScore = (at, run, label) => {
  const place = INDEX.runs[run].metrics.findIndex(([own]) => own === label);
  const shown = shownOf(at, run);
  return place < 0 || !shown || !shown.values ? null : shown.values[place];
};
const ownScore = (at, run) => winnerScore(at, run, INDEX.runs[run].metrics[0][0]);
const difference = (at, label, ours, theirs) => {
  const x = winnerScore(at, ours, label), y = winnerScore(at, theirs, label);
  return x === null || y === null ? null : x - y;
};
// The highest of a prompt's winners, where runs can be compared and differ; else null.
function highest(at) {
  if (!several || FIRST === null) return null;
  const scores = INDEX.runs.map((_, run) => ownScore(at, run)).filter((score) => score !== null);
  return scores.length > 1 && Math.max(...scores) > Math.min(...scores) ? Math.max(...scores) : null;
}
// Why a prompt has no winner in a run, in a word.
function missing(shown) {
  if (!shown) return "not searched";
  if (shown.failed) return "failed";
  return shown.unfinished ? "unfinished" : "no score";
}

const MOST_CATEGORIES = 40;  // more are as good as none
const CATEGORIES = [...new Set(INDEX.prompts.map(({ category }) => category).filter(Boolean))];
if (CATEGORIES.length > MOST_CATEGORIES) CATEGORIES.length = 0;
// Those by which prompts can be ordered: of many runs only the pairs with the first.
const PAIRS = INDEX.pairs.filter(([, , theirs]) => INDEX.runs.length < 4 || theirs === 0);
